//! Commands to a server, by Redis's own client.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, bail};

use crate::place::program;

/// A command that takes longer does not end: a server that is stopped answers nothing.
const LIMIT_SECONDS: &str = "30";

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct As<'a> {
    pub(crate) user: &'a str,
    pub(crate) password: &'a str,
}

/// Runs one command on the server of this port and returns what it says, the parts of a list one a line.
pub(crate) fn command(port: u16, who: As<'_>, words: &[&str]) -> anyhow::Result<String> {
    let mut cli = cli(port, who)?;
    let output = cli.arg("-e").args(words).stdin(Stdio::null()).output().context("cannot start timeout")?;
    said(output).with_context(|| format!("{} on port {port}", words.join(" ")))
}

/// Runs one command whose words are written as redis-cli quotes them, so that any byte can be in them, and returns
/// what it says in the same form.
pub(crate) fn quoted(port: u16, who: As<'_>, line: &str) -> anyhow::Result<String> {
    let mut cli = cli(port, who)?;
    cli.arg("--no-raw").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut cli = cli.spawn().context("cannot start timeout")?;
    let mut to = cli.stdin.take().context("the client has no input")?;
    // Its answer is short until it has read all of this.
    to.write_all(line.as_bytes()).and_then(|()| to.write_all(b"\n")).context("the client reads nothing")?;
    drop(to);
    let said = said(cli.wait_with_output().context("the client")?).with_context(|| format!("on port {port}"))?;
    // Here it says so of an error, and ends well.
    if said.starts_with("(error)") { bail!("port {port}: {said}") } else { Ok(said) }
}

fn cli(port: u16, who: As<'_>) -> anyhow::Result<Command> {
    let cli = program("redis-cli", "redis-tools")?;
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", LIMIT_SECONDS]).arg(cli);
    command.args(["--no-auth-warning", "-h", "127.0.0.1", "-p", &port.to_string(), "--user", who.user]);
    command.env("REDISCLI_AUTH", who.password);
    Ok(command)
}

fn said(output: Output) -> anyhow::Result<String> {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // With a wrong password it says so and goes on as nobody.
    if !output.status.success() || err.contains("AUTH failed") {
        bail!("redis-cli: {}\n{out}{err}", output.status);
    }
    Ok(out.trim_end_matches('\n').to_owned())
}
