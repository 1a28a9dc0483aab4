//! What can be typed, for clap. Wrong usage ends with exit code 2, as clap has it.

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use onceward_core::record::SessionId;

use super::prove::ProveArgs;
use crate::config::{Flags, secret::Secret, units};

/// Each request takes effect once, and every repetition gets the first one's answer.
///
/// At most one dispatch per key within its retention, unless the upstream itself says that it did
/// nothing, you ask otherwise, or you chose durability `cache`; every unknown outcome is shown as
/// unknown. Data goes to stdout, errors and logs to stderr. Exit codes: 0 done, 1 the thing checked
/// is not well, 2 wrong usage or configuration.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "onceward",
    version = crate::VERSION,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
#[command(after_help = "Example:\n  onceward proxy --upstream http://127.0.0.1:9000")]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Run the reverse proxy
    Proxy(ProxyArgs),
    /// List, look at, delete and settle records
    #[command(subcommand, after_help = "Example:\n  onceward keys list --state unknown --since 24h")]
    Keys(KeysCommand),
    /// Show how a request is treated
    #[command(subcommand, after_help = "Example:\n  onceward key explain --config onceward.toml < request.http")]
    Key(KeyCommand),
    /// Show what captured requests would be taken for: collisions, strangers, and the fields to blame
    ///
    /// A capture is JSON lines, one request each: {"method": "POST", "path": "/v1/payments", "headers": {"Idempotency-Key": "k"},
    /// "body": "…"}, or body_base64; with "operation", what the client meant, where that is known. Exit code 1 where
    /// something would count as what it is not.
    #[command(after_help = "Example:\n  onceward audit --config onceward.toml requests.ndjson")]
    Audit {
        /// The configuration; the defaults without one
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The capture; - is stdin
        #[arg(value_name = "CAPTURE")]
        capture: PathBuf,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Attack an endpoint that claims to be idempotent, and print each double effect with what reproduces it
    Prove(Box<ProveArgs>),
    /// Compare records with the effects that upstreams wrote down, and show what does not fit
    ///
    /// Of routes that say `effect`. Exit code 0 where all fits, 1 where something was found, 2 where it cannot be told.
    #[command(after_help = "Example:\n  onceward reconcile --config onceward.toml --repair")]
    Reconcile(Box<ReconcileArgs>),
    /// Look whether the database of a configuration is fit to keep records
    ///
    /// Changes nothing. Exit code 1 where something is bad.
    #[command(after_help = "Example:\n  onceward doctor --config onceward.toml")]
    Doctor {
        /// The configuration whose [store.postgres] is meant
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Look at the views that journaled claims are granted in
    #[command(subcommand, after_help = "Example:\n  onceward view status --config onceward.toml")]
    View(ViewCommand),
    /// Make the schema of a store in Postgres, or bring it up to this version
    ///
    /// Repeatable; several may run it at a time. Processes of the version before go on beside it.
    #[command(
        after_help = "Examples:\n  onceward migrate --database postgresql://owner@db/shop --dry-run\n  onceward migrate --config onceward.toml --secret"
    )]
    Migrate(MigrateArgs),
    /// Check and explain the configuration
    #[command(subcommand, after_help = "Example:\n  onceward config check onceward.toml")]
    Config(ConfigCommand),
    /// Print the completions of a shell
    #[command(after_help = "Example:\n  onceward completions bash > /etc/bash_completion.d/onceward")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `onceward migrate`
#[derive(Args, Clone, Debug)]
pub struct MigrateArgs {
    /// The configuration whose [store.postgres] is meant
    #[arg(long, value_name = "FILE", conflicts_with = "database")]
    pub config: Option<PathBuf>,
    /// The database; with sslmode=require over TLS. env:NAME and file:PATH are followed
    #[arg(long, value_name = "URL", value_parser = secret)]
    pub database: Option<Secret>,
    /// The only authorities of the server's certificate
    #[arg(long, value_name = "FILE", requires = "database")]
    pub ca: Option<PathBuf>,
    /// Print the SQL that would be run, and run nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Keep the install secret in the database, for SQL functions that make record ids; without a value, that of the configuration
    #[arg(long, value_name = "SECRET", num_args = 0..=1, default_missing_value = "", value_parser = secret)]
    pub secret: Option<Secret>,
}

/// `onceward proxy`
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "\
Examples:
  onceward proxy --upstream http://127.0.0.1:9000
  onceward proxy --config onceward.toml --listen 0.0.0.0:8080
  onceward proxy --demo

Ready when stdout has the line
  onceward ready proxy=http://127.0.0.1:8080 admin=http://127.0.0.1:8081

Flags win over environment variables (ONCEWARD_LISTEN__ADDRESS), and those over the file.")]
pub struct ProxyArgs {
    /// The API behind it, as http://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
    /// Where clients connect [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<String>,
    /// Where metrics, health and records are [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<String>,
    /// The embedded store's folder [default: onceward-data]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run in front of a built-in sample payments API, and print commands to try
    #[arg(long, conflicts_with = "upstream")]
    pub demo: bool,
    /// Open a store that has lost data, and list the interval whose keys may run again
    #[arg(long)]
    pub accept_loss: bool,
    /// Start although record ids are made otherwise than before; records are looked for under both
    #[arg(long)]
    pub accept_rekey: bool,
}

impl ProxyArgs {
    /// What of it overrides the file.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags {
            upstream: self.upstream.clone(),
            listen: self.listen.clone(),
            admin: self.admin.clone(),
            data: self.data.clone(),
        }
    }
}

/// `onceward keys`
#[derive(Clone, Debug, Subcommand)]
#[non_exhaustive]
pub enum KeysCommand {
    /// List records
    #[command(after_help = "\
Examples:
  onceward keys list --state unknown
  onceward keys list --route create-payment --since 24h --json")]
    List {
        /// Which records
        #[command(flatten)]
        filter: FilterArgs,
        /// Where they are
        #[command(flatten)]
        target: TargetArgs,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Look at one record
    #[command(after_help = "\
Examples:
  onceward keys get YKcJ3IXiJHabZiu6uvB7XO5FekyaCPp-INTrvKFnz_8
  onceward keys get --key 8e03978e --route create-payment --authorization env:CALLER --json")]
    Get {
        /// Which record
        #[command(flatten)]
        name: NameArgs,
        /// Where it is
        #[command(flatten)]
        target: TargetArgs,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete one record: its key is new again, and a repetition runs; or erase it
    #[command(after_help = "\
Examples:
  onceward keys forget --key 8e03978e --route create-payment --dry-run
  onceward keys forget YKcJ3IXiJHabZiu6uvB7XO5FekyaCPp-INTrvKFnz_8 --erase")]
    Forget {
        /// Which record
        #[command(flatten)]
        name: NameArgs,
        /// Erase what was recorded, and keep the key unusable (410 key-gone) until its retention ends
        #[arg(long)]
        erase: bool,
        /// Erase it even while it is in flight or its outcome unknown: what still runs is not recorded
        #[arg(long, requires = "erase")]
        force: bool,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
        /// Where it is
        #[command(flatten)]
        target: TargetArgs,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Settle unknown outcomes, one or many
    #[command(after_help = "\
Examples:
  onceward keys resolve YKcJ3IXiJHabZiu6uvB7XO5FekyaCPp-INTrvKFnz_8 --as executed --status 201 --body @answer.json
  onceward keys resolve --state unknown --route create-payment --as not-executed --dry-run")]
    Resolve(ResolveArgs),
}

/// `onceward keys resolve`: one record by name, or all unknown ones that the filter leaves.
#[derive(Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("which").required(true).args(["record_id", "key", "state"])))]
pub struct ResolveArgs {
    /// Which record
    #[command(flatten)]
    pub name: NameOrNone,
    /// All records in this state; only unknown outcomes can be settled
    #[arg(long, value_name = "STATE", value_parser = ["unknown"])]
    pub state: Option<String>,
    /// Only those written since then: a duration ago, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", value_parser = since, conflicts_with_all = ["record_id", "key"])]
    pub since: Option<Since>,
    /// What is known of it now
    #[arg(long = "as", value_name = "OUTCOME")]
    pub outcome: Settlement,
    /// The status that repetitions get
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(200..=599))]
    pub status: Option<u16>,
    /// The body that repetitions get, as @FILE; @- is stdin
    #[arg(long, value_name = "@FILE", value_parser = body, requires = "status")]
    pub body: Option<BodyFile>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Where they are
    #[command(flatten)]
    pub target: TargetArgs,
    /// How to print
    #[command(flatten)]
    pub output: OutputArgs,
}

impl ResolveArgs {
    /// What clap cannot say in its definitions.
    ///
    /// # Errors
    ///
    /// Wrong usage; `exit` on it ends with code 2.
    pub fn validate(&self) -> Result<(), clap::Error> {
        if self.status.is_some() && self.outcome == Settlement::NotExecuted {
            let why = "--status is an answer, and what is not executed has none";
            return Err(CommandLine::command().error(clap::error::ErrorKind::ArgumentConflict, why));
        }
        Ok(())
    }
}

/// What is known of an unknown outcome now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Settlement {
    /// It took effect: repetitions get the answer given here
    Executed,
    /// It did not: the next request with the key runs
    NotExecuted,
    /// It has failed for good: repetitions are told so
    Failed,
}

/// Which records to list.
#[derive(Args, Clone, Debug, Default)]
pub struct FilterArgs {
    /// Only those in this state
    #[arg(long, value_name = "STATE")]
    pub state: Option<StateName>,
    /// Only those of this route
    #[arg(long, value_name = "NAME")]
    pub route: Option<String>,
    /// Only those written since then: a duration ago, or an RFC 3339 time
    #[arg(long, value_name = "WHEN", value_parser = since)]
    pub since: Option<Since>,
}

/// The state of a record, as records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum StateName {
    /// Its request runs
    InFlight,
    /// It has its answer
    Completed,
    /// Whether it took effect is not known
    Unknown,
    /// Settled as failed
    Failed,
    /// Erased on request
    Erased,
    /// Settled as not executed: the next repetition runs
    NotExecuted,
}

/// Names one record: by its id, or by its key.
#[derive(Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("named").required(true).args(["record_id", "key"])))]
pub struct NameArgs {
    /// Which record
    #[command(flatten)]
    pub name: NameOrNone,
}

/// The ways to name a record. One of `record_id` and `key` at most.
#[derive(Args, Clone, Debug, Default)]
pub struct NameOrNone {
    /// The record's id, in base64url
    // One in 64 begins with a hyphen.
    #[arg(value_name = "RECORD_ID", allow_hyphen_values = true, conflicts_with_all = ["key", "tenant", "authorization"])]
    pub record_id: Option<String>,
    /// The client's key
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Its tenant, where routes have several
    #[arg(long, value_name = "TENANT", requires = "key")]
    pub tenant: Option<String>,
    /// Its route's name; "default METHOD PATH" where no route matched
    #[arg(long, value_name = "NAME")]
    pub route: Option<String>,
    /// The Authorization header of its caller; env:NAME and file:PATH keep it off the command line
    #[arg(long, value_name = "VALUE", requires = "key", value_parser = secret)]
    pub authorization: Option<Secret>,
}

/// Where the records are.
#[derive(Args, Clone, Debug, Default)]
pub struct TargetArgs {
    /// The embedded store's folder; a running process is found through it
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// The configuration of the process
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The admin address of a running process, as http://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// Its admin token; env:NAME and file:PATH keep it off the command line
    #[arg(long, value_name = "TOKEN", env = "ONCEWARD_ADMIN_TOKEN", hide_env_values = true, value_parser = secret)]
    pub token: Option<Secret>,
}

/// `onceward reconcile`
#[derive(Args, Clone, Debug)]
pub struct ReconcileArgs {
    /// Settle first what the routes' on_unknown allows, and run the compensations that are due
    #[arg(long)]
    pub repair: bool,
    /// Only this route
    #[arg(long, value_name = "ROUTE")]
    pub route: Option<String>,
    /// How many records of each kind are shown
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub examples: usize,
    /// Where the records are
    #[command(flatten)]
    pub target: TargetArgs,
    /// How to print
    #[command(flatten)]
    pub output: OutputArgs,
}

/// How to print.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct OutputArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Of `onceward view`.
#[derive(Clone, Debug, Subcommand)]
#[non_exhaustive]
pub enum ViewCommand {
    /// Show of how many partitions claims are granted, who is a member, and whom the others wait for
    ///
    /// Changes nothing. Exit code 1 where journaled keys of some partitions are refused.
    #[command(after_help = "Example:\n  onceward view status --config onceward.toml --json")]
    Status {
        /// The configuration whose [store.journal] is meant
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Have the views that wait for a session go on without it, where its gateway is gone with its disk
    ///
    /// What it was granted last may then run a second time, so this asks first: without --accept-risk it changes nothing.
    /// Exit code 1 where the session lives, or nothing waits for it.
    #[command(
        after_help = "Example:\n  onceward view force --config onceward.toml --without 0f5d3c2b1a69788796a5b4c3d2e1f001 --accept-risk"
    )]
    Force(ForceArgs),
    /// List the keys that may have been executed twice since views went on without a session
    ///
    /// Changes nothing. Exit code 1 where some are known to have been granted twice.
    #[command(after_help = "Example:\n  onceward view at-risk --config onceward.toml --json")]
    AtRisk {
        /// The configuration whose [store.journal] is meant
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// `onceward view force`
#[derive(Args, Clone, Debug)]
pub struct ForceArgs {
    /// The configuration whose [store.journal] is meant
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// The session, as `view status` shows it
    #[arg(long, value_name = "SESSION", value_parser = session)]
    pub without: SessionId,
    /// Its process has ended for certain, and that keys may run twice is accepted
    #[arg(long)]
    pub accept_risk: bool,
    /// How to print
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `onceward key`
#[derive(Clone, Debug, Subcommand)]
#[non_exhaustive]
pub enum KeyCommand {
    /// Show how one captured request is treated: an HTTP/1.1 message on stdin
    #[command(after_help = "\
Examples:
  onceward key explain --config onceward.toml < request.http
  printf 'POST /v1/payments HTTP/1.1\\r\\nHost: a\\r\\nIdempotency-Key: k-1\\r\\n\\r\\n' | onceward key explain")]
    Explain {
        /// The configuration; the defaults without one
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// `onceward config`
#[derive(Clone, Debug, Subcommand)]
#[non_exhaustive]
pub enum ConfigCommand {
    /// Validate a file: every problem with line, column and remedy
    #[command(after_help = "Example:\n  onceward config check onceward.toml")]
    Check {
        /// The file
        file: PathBuf,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print the JSON Schema of the file, for editors
    #[command(after_help = "\
Example:
  onceward config schema > onceward.schema.json

With this line at the top of onceward.toml, editors that know TOML complete and check it:
  #:schema ./onceward.schema.json")]
    Schema {
        /// How to print; it is JSON in any case
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print a commented file with every key at its default
    #[command(after_help = "Example:\n  onceward config example > onceward.toml")]
    Example,
    /// Show each route's times and the inequalities they must meet
    #[command(after_help = "Example:\n  onceward config timeouts onceward.toml")]
    Timeouts {
        /// The file
        file: PathBuf,
        /// How to print
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So long ago.
    Ago(Duration),
    /// Then.
    At(jiff::Timestamp),
}

/// 32 hexadecimal digits.
fn session(text: &str) -> Result<SessionId, String> {
    let wrong = || "a session is 32 hexadecimal digits: `onceward view status` shows them".to_owned();
    let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32 && !text.starts_with('+'));
    number.map(|number| SessionId(number.to_be_bytes())).ok_or_else(wrong)
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(at) = text.parse() {
        return Ok(Since::At(at));
    }
    let wrong = |_| "write a duration, such as 24h, or a time, such as 2026-01-31T12:00:00Z".to_owned();
    units::duration(text).map(Since::Ago).map_err(wrong)
}

/// Where a body is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyFile {
    /// `@-`
    Stdin,
    /// `@FILE`
    File(PathBuf),
}

/// As it was typed: [`Secret::follow`] reads what it points to.
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text.to_owned()))
}

fn body(text: &str) -> Result<BodyFile, String> {
    match text.strip_prefix('@') {
        Some("-") => Ok(BodyFile::Stdin),
        Some(path) if !path.is_empty() => Ok(BodyFile::File(path.into())),
        _ => Err("write @ and the name of a file, such as @answer.json".to_owned()),
    }
}

/// Writes the completions for `shell`.
pub fn completions(shell: clap_complete::Shell, out: &mut dyn std::io::Write) {
    clap_complete::generate(shell, &mut CommandLine::command(), "onceward", out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        CommandLine::try_parse_from(line.split_whitespace()).map(|line| line.command)
    }

    #[test]
    fn the_definitions_are_sound_and_each_command_has_an_example() {
        fn walk(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{} has no example", command.get_name());
            assert!(command.get_about().is_some(), "{} says nothing of itself", command.get_name());
            command.get_subcommands().filter(|command| command.get_name() != "help").for_each(walk);
        }
        let command = CommandLine::command();
        command.clone().debug_assert();
        walk(&command);
    }

    #[test]
    fn the_examples_of_the_protocol_are_taken() {
        for line in [
            "onceward proxy --upstream http://127.0.0.1:9000 --listen 127.0.0.1:8080 --admin 127.0.0.1:8081 --data d --config f",
            "onceward proxy --demo",
            "onceward proxy --accept-loss --accept-rekey --config f",
            "onceward keys list --state in_flight --route r --since 24h --json",
            "onceward keys list --since 2026-01-31T12:00:00Z --admin http://127.0.0.1:8081 --token t",
            "onceward keys get --key k --tenant t --route r --authorization a --data d",
            "onceward keys get YKcJ --config f",
            "onceward keys forget YKcJ --dry-run",
            "onceward keys forget YKcJ --erase --force",
            "onceward keys resolve --state unknown --route R --as executed --status 200 --body @f --dry-run",
            "onceward keys resolve YKcJ --as failed",
            "onceward keys resolve --key k --route r --as not-executed",
            "onceward key explain --config f --json",
            "onceward audit --config f requests.ndjson --json",
            "onceward audit -",
            "onceward prove http://h/p -X PUT -d {} --effects-url http://h/e --effects-pointer /count --attacks race,repeat",
            "onceward prove https://h/p --effects-url https://h/{key} --effects-header X-Count --cacert f --junit j --json",
            "onceward config check f --json",
            "onceward config example",
            "onceward config timeouts f",
            "onceward completions zsh",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn wrong_usage_ends_with_code_2() {
        for line in [
            "onceward",
            "onceward serve",
            "onceward proxy --demo --upstream http://h",
            "onceward keys get",
            "onceward keys get YKcJ --key k",
            "onceward keys get YKcJ --tenant t",
            "onceward keys list --state gone",
            "onceward keys list --since yesterday",
            "onceward keys forget YKcJ --force",
            "onceward keys resolve --as failed",
            "onceward keys resolve YKcJ",
            "onceward keys resolve YKcJ --as executed --status 100",
            "onceward keys resolve YKcJ --as executed --status 200 --body answer.json",
            "onceward keys resolve YKcJ --as executed --body @answer.json",
            "onceward keys resolve --state failed --as executed",
            "onceward keys resolve YKcJ --state unknown --as executed",
            "onceward keys resolve YKcJ --since 1h --as executed",
            "onceward config check",
            "onceward prove http://h/p --effects-url http://h/e",
            "onceward prove http://h/p --effects-pointer /count",
            "onceward prove http://h/p --effects-url http://h/e --effects-pointer count",
            "onceward prove http://h/p --effects-url http://h/e --effects-pointer /count --attacks magic",
            "onceward prove http://h/p --effects-url http://h/e --effects-pointer /count --rounds 0",
            "onceward prove http://h/p --effects-url http://h/e --effects-pointer /count --timeout 0s",
        ] {
            match parse(line) {
                Ok(command) => panic!("{line} is taken: {command:?}"),
                Err(error) => assert_eq!(error.exit_code(), 2, "{line}: {error}"),
            }
        }
        let Ok(Command::Keys(KeysCommand::Resolve(args))) =
            parse("onceward keys resolve YKcJ --as not-executed --status 200")
        else {
            panic!("not taken")
        };
        let error = args.validate().unwrap_err();
        assert_eq!((error.exit_code(), error.kind()), (2, ErrorKind::ArgumentConflict));
    }

    #[test]
    fn values_become_what_they_mean() {
        assert_eq!(since("24h"), Ok(Since::Ago(Duration::from_secs(86_400))));
        assert_eq!(body("@-"), Ok(BodyFile::Stdin));
        let Ok(Command::Proxy(args)) = parse("onceward proxy --listen 127.0.0.1:0 --data d") else {
            panic!("not taken")
        };
        assert_eq!(
            args.flags(),
            Flags { listen: Some("127.0.0.1:0".into()), data: Some("d".into()), ..Flags::default() }
        );
        let mut out = Vec::new();
        completions(clap_complete::Shell::Bash, &mut out);
        assert!(String::from_utf8(out).unwrap().contains("--accept-loss"));
    }
}
