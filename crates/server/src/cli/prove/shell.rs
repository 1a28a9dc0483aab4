//! What was done, as commands for a shell with curl: a reader can see each double effect come about.
//!
//! The key is `$KEY`, drawn anew each time, since a key that was used is no longer fresh. Credentials are shown as
//! variables.

use std::path::PathBuf;
use std::time::Duration;

use super::effects::Counter;
use super::message::{Line, Message, Operation};

/// Draws the key that the commands use, and adds so many zeros.
pub(super) fn draw(zeros: usize) -> String {
    let more = if zeros == 0 { String::new() } else { format!("$(printf %0{zeros}d 0)") };
    format!("KEY=$(uuidgen || cat /proc/sys/kernel/random/uuid){more}")
}

/// Steps that are the same one after the other as one.
pub(super) fn folded(steps: Vec<String>) -> Vec<String> {
    let mut folded: Vec<(String, usize)> = Vec::new();
    for step in steps {
        match folded.last_mut() {
            Some((last, count)) if *last == step => *count += 1,
            _ => folded.push((step, 1)),
        }
    }
    let each = |(step, count)| match count {
        1 => step,
        count => format!("for i in $(seq {count}); do {step}; done"),
    };
    folded.into_iter().map(each).collect()
}

/// How the commands check certificates.
#[derive(Clone, Debug, Default)]
pub(super) struct Trust {
    pub(super) cacert: Option<PathBuf>,
    pub(super) is_insecure: bool,
}

impl Trust {
    fn flags(&self, is_tls: bool) -> String {
        match (&self.cacert, self.is_insecure) {
            _ if !is_tls => String::new(),
            (_, true) => " --http1.1 -k".to_owned(),
            (Some(file), false) => format!(" --http1.1 --cacert {}", quote(&file.to_string_lossy())),
            (None, false) => " --http1.1".to_owned(),
        }
    }
}

/// The command that sends a message and prints its status.
pub(super) fn send(message: &Message<'_>, trust: &Trust) -> String {
    with_body(message, trust, None)
}

/// One whose client goes away after `within`, without its answer.
pub(super) fn abandon(message: &Message<'_>, trust: &Trust, within: Duration) -> String {
    format!("{} --max-time {:.3}", send(message, trust), within.as_secs_f64().max(0.02))
}

/// One that is cut after so many bytes of its body.
pub(super) fn cut(message: &Message<'_>, trust: &Trust, bytes: usize, within: Duration) -> String {
    let command = with_body(message, trust, Some(bytes));
    format!("{command} --max-time {:.3}", within.as_secs_f64().max(0.1))
}

/// One whose connection is closed at the first bytes of the answer.
pub(super) fn cut_answer(message: &Message<'_>, trust: &Trust) -> String {
    let whole = send(message, trust).replacen(" -o /dev/null -w '%{http_code}\\n'", " -iN", 1);
    format!("{whole} | head -c 1 >/dev/null")
}

/// Commands at once, so many times.
pub(super) fn at_once(commands: &[String], times: usize) -> String {
    let each: Vec<String> = commands.iter().map(|command| format!("{command} &")).collect();
    format!("for i in $(seq {times}); do {} done; wait", each.join(" "))
}

/// The command that reads the counter.
pub(super) fn count(counter: &Counter, operation: &Operation, trust: &Trust) -> String {
    let url = counter.url_of(&operation.key);
    let flags = trust.flags(url.origin.is_tls);
    let mut command = format!("curl -sSi{flags} {}", word(&url.text(operation), &operation.drawn));
    for line in &counter.headers {
        command.push_str(&header(line, operation));
    }
    command
}

fn with_body(message: &Message<'_>, trust: &Trust, cut_at: Option<usize>) -> String {
    let (template, operation) = (message.template, &message.operation);
    let url = template.url.text(operation);
    let flags = trust.flags(template.url.origin.is_tls);
    let key = operation.drawn.as_str();
    let mut command =
        format!("curl -sS -o /dev/null -w '%{{http_code}}\\n'{flags} -X {} {}", template.method, word(&url, key));
    for line in &template.headers {
        command.push_str(&header(line, operation));
    }
    for (name, value) in &message.key_lines {
        // curl leaves out a header without a value unless it is told so.
        let line = if value.is_empty() { format!("{name};") } else { format!("{name}: {value}") };
        command.push_str(&format!(" -H {}", word(&line, key)));
    }
    let length = message.body.bytes(operation).len();
    match (message.body.shown(operation), cut_at) {
        (Ok(text), None) if text.is_empty() => {}
        (Ok(text), None) => command.push_str(&format!(" --data-binary {}", word(&text, key))),
        (Err(file), None) => command.push_str(&format!(" --data-binary @{}", quote(file))),
        (Ok(text), Some(bytes)) => {
            let part = String::from_utf8_lossy(text.as_bytes().get(..bytes).unwrap_or_default()).into_owned();
            command.push_str(&format!(" -H 'Content-Length: {length}' --data-binary {}", word(&part, key)));
        }
        (Err(file), Some(bytes)) => {
            let part = format!("head -c {bytes} {} | ", quote(file));
            command = format!("{part}{command} -H 'Content-Length: {length}' --data-binary @-");
        }
    }
    command
}

fn header(line: &Line, operation: &Operation) -> String {
    match line.shown(operation) {
        Some(value) => format!(" -H {}", word(&format!("{}: {value}", line.name), &operation.drawn)),
        None => format!(" -H \"{}: ${}\"", line.name, line.variable()),
    }
}

/// As one word of a POSIX shell, with `$KEY` where the key stands.
fn word(text: &str, key: &str) -> String {
    if key.is_empty() || !text.contains(key) {
        return quote(text);
    }
    let parts: Vec<String> =
        text.split(key).map(|part| if part.is_empty() { String::new() } else { quote(part) }).collect();
    parts.join("\"$KEY\"")
}

fn quote(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
