//! The command line. [`args`] is what can be typed; what it does stands beside it, one file a command.

use std::process::ExitCode;

use clap::Parser as _;

use self::args::{Command, CommandLine, ConfigCommand, KeyCommand, ViewCommand};
use crate::{
    config::{Config, ConfigError, Environment, Flags, json_schema, report},
    start,
};

mod access;
pub mod args;
mod audit;
mod doctor;
mod explain;
mod force;
mod keys;
mod log;
mod migrate;
pub mod prove;
mod reconcile;
mod view;

/// Something that ends a command: what to say on stderr, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// 1 where the thing checked is not well, 2 for wrong usage or configuration.
    pub code: u8,
    /// What went wrong, and how to mend it.
    pub message: String,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    fn not_well(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<start::StartError> for Failure {
    fn from(error: start::StartError) -> Self {
        let code = error.exit_code();
        Self { code, message: error.in_words() }
    }
}

/// Runs what was typed.
#[must_use]
pub fn run() -> ExitCode {
    let line = CommandLine::parse();
    // Dropped last: what was logged is written before the process ends.
    let _log = match start_log() {
        Ok(log) => log,
        Err(error) => return end(&Failure::not_well(format!("cannot start the log: {error}"))),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return end(&Failure::not_well(format!("cannot start: {error}"))),
    };
    let done = runtime.block_on(command(line.command));
    // What still runs was given its time.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&failure),
    }
}

fn end(failure: &Failure) -> ExitCode {
    eprintln!("onceward: {}", failure.message);
    ExitCode::from(failure.code)
}

/// Logs go to stderr: as text, or as JSON lines where `ONCEWARD_LOG_FORMAT=json`. What is logged, `ONCEWARD_LOG`
/// says, as in `ONCEWARD_LOG=warn`; `info` by default.
fn start_log() -> std::io::Result<log::Writer> {
    use tracing_subscriber::{EnvFilter, fmt};
    let lines = log::Lines::default();
    let writer = log::Writer::start(&lines, std::io::stderr())?;
    let filter = EnvFilter::try_from_env("ONCEWARD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let to = fmt().with_env_filter(filter).with_target(false).with_writer(move || lines.clone());
    if std::env::var("ONCEWARD_LOG_FORMAT").is_ok_and(|format| format == "json") {
        to.json().flatten_event(true).init();
    } else if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        to.init();
    } else {
        to.event_format(log::line::Plain).init();
    }
    Ok(writer)
}

async fn command(command: Command) -> Result<(), Failure> {
    match command {
        Command::Proxy(args) => Ok(start::run(&args).await?),
        Command::Keys(command) => keys::run(command).await,
        Command::Key(KeyCommand::Explain { config, output }) => {
            let flags =
                Flags { upstream: config.is_none().then(|| "http://127.0.0.1:9000".into()), ..Flags::default() };
            let config = Config::load(config.as_deref(), &flags, &Environment::of_process())?;
            explain::run(&config, std::io::stdin().lock(), output.json)
        }
        Command::Audit { config, capture, output } => {
            let flags =
                Flags { upstream: config.is_none().then(|| "http://127.0.0.1:9000".into()), ..Flags::default() };
            let config = Config::load(config.as_deref(), &flags, &Environment::of_process())?;
            let engine = explain::engine(&config)?;
            if capture.as_os_str() == "-" {
                return audit::run(&engine, std::io::stdin().lock(), output.json);
            }
            let file = std::fs::File::open(&capture)
                .map_err(|error| Failure::usage(format!("{} cannot be read: {error}", capture.display())))?;
            audit::run(&engine, std::io::BufReader::new(file), output.json)
        }
        Command::Doctor { config, output } => doctor::run(&config, output.json).await,
        Command::View(ViewCommand::Status { config, output }) => view::status(&config, output.json).await,
        Command::View(ViewCommand::Force(args)) => force::force(&args).await,
        Command::View(ViewCommand::AtRisk { config, output }) => force::at_risk(&config, output.json).await,
        Command::Reconcile(args) => reconcile::run(&args).await,
        Command::Migrate(args) => migrate::run(&args).await,
        Command::Prove(args) => prove::run(&args).await,
        Command::Config(ConfigCommand::Check { file, output }) => {
            let report = report::check(&file, &Environment::of_process())?;
            if output.json {
                println!("{}", report.json());
            } else {
                print!("{}", report.text());
            }
            if report.ok() { Ok(()) } else { Err(Failure::usage(format!("{} is not well", file.display()))) }
        }
        Command::Config(ConfigCommand::Schema { output }) => {
            let schema = json_schema();
            // One line for programs, as all `--json` is; else for eyes.
            println!("{}", if output.json { schema.to_string() } else { format!("{schema:#}") });
            Ok(())
        }
        Command::Config(ConfigCommand::Example) => {
            print!("{}", report::EXAMPLE);
            Ok(())
        }
        Command::Config(ConfigCommand::Timeouts { file, output }) => {
            let timeouts = report::timeouts(&file, &Environment::of_process())?;
            if output.json {
                println!("{}", timeouts.json());
            } else {
                print!("{}", timeouts.text());
            }
            if timeouts.ok() { Ok(()) } else { Err(Failure::not_well("the times above are not aligned")) }
        }
        Command::Completions { shell } => {
            args::completions(shell, &mut std::io::stdout().lock());
            Ok(())
        }
    }
}

/// A text as it may stand anywhere in a URL: all but the unreserved characters of RFC 3986 section 2.3 by their bytes.
fn percent_encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
}
