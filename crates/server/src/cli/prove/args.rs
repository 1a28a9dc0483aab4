//! What can be typed after `onceward prove`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::attack::Attack;
use crate::cli::args::OutputArgs;
use crate::config::units;

/// `onceward prove`
#[derive(Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("counted").required(true).args(["effects_pointer", "effects_header"])))]
#[command(after_help = "\
Examples:
  onceward prove http://127.0.0.1:8080/v1/payments --body '{\"amount\": 5, \"currency\": \"EUR\"}' \\
      --effects-url http://127.0.0.1:8080/v1/payments --effects-pointer /count
  onceward prove https://api.example.com/orders --body @order.json --header 'Authorization: env:TOKEN' \\
      --effects-url 'https://api.example.com/orders?key={key}' --effects-pointer /orders --junit prove.xml

It makes effects: point it at a test system. In URL, headers and body, {{key}} is the key of the operation
and {{n}} a number that no other operation has.
Exit codes: 0 nothing found, 1 something found, 2 wrong usage, or it could not be told.")]
pub struct ProveArgs {
    /// The endpoint
    #[arg(value_name = "URL")]
    pub(super) url: String,
    /// The method
    #[arg(long, short = 'X', value_name = "METHOD", default_value = "POST")]
    pub(super) method: http::Method,
    /// The body; @FILE reads it, @- from stdin
    #[arg(long, short = 'd', value_name = "BODY|@FILE", default_value = "", hide_default_value = true)]
    pub(super) body: String,
    /// Another body for the attacks that need one [default: the first with a value changed]
    #[arg(long, value_name = "BODY|@FILE")]
    pub(super) other_body: Option<String>,
    /// A header, as "Name: value"; env:NAME and file:PATH as its value keep it off the command line
    #[arg(long = "header", short = 'H', value_name = "LINE")]
    pub(super) headers: Vec<String>,
    /// The header of the key
    #[arg(long, value_name = "NAME", default_value = "Idempotency-Key", value_parser = header_name)]
    pub(super) key_header: String,
    /// Send keys in quotes, as the draft of the IETF has them
    #[arg(long)]
    pub(super) quoted: bool,
    /// Where effects are counted, by GET; {key} in it stands for the key, else it is a total
    ///
    /// A total must be moved by nothing else meanwhile. With {key}, 404 counts as none.
    #[arg(long, value_name = "URL")]
    pub(super) effects_url: String,
    /// The count in its JSON, as an RFC 6901 pointer: a whole number, or an array, whose length counts
    #[arg(long, value_name = "POINTER", value_parser = pointer)]
    pub(super) effects_pointer: Option<String>,
    /// The count in a header of its answer
    #[arg(long, value_name = "NAME", value_parser = header_name)]
    pub(super) effects_header: Option<String>,
    /// A header for the counter [default: those of --header where it has the same scheme, host and port]
    #[arg(long = "effects-send", value_name = "LINE")]
    pub(super) effects_send: Vec<String>,
    /// Only these attacks, separated by commas [default: all]
    #[arg(long, value_name = "ATTACKS", value_delimiter = ',')]
    pub(super) attacks: Vec<Attack>,
    /// Requests at once in races
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=1000))]
    pub(super) concurrency: u16,
    /// Rounds of each attack, each with a key of its own
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub(super) rounds: u16,
    /// For each exchange, and for repeating one that is told to come again
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = positive)]
    pub(super) timeout: Duration,
    /// How long the counter must stand still to count
    #[arg(long, value_name = "DURATION", default_value = "300ms", value_parser = positive)]
    pub(super) settle: Duration,
    /// Draws the moments and places of the attacks; keys are new in each run [default: drawn, and printed]
    #[arg(long, value_name = "NUMBER")]
    pub(super) seed: Option<u64>,
    /// Write the findings as JUnit XML too
    #[arg(long, value_name = "FILE")]
    pub(super) junit: Option<PathBuf>,
    /// Authorities whose certificates count, in PEM [default: those of the system]
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub(super) cacert: Option<PathBuf>,
    /// Take any certificate
    #[arg(long)]
    pub(super) insecure: bool,
    /// How to print
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

fn positive(text: &str) -> Result<Duration, String> {
    match units::duration(text)? {
        Duration::ZERO => Err("must be longer than nothing".to_owned()),
        hour if hour > Duration::from_secs(3600) => Err("must not be longer than 1h".to_owned()),
        duration => Ok(duration),
    }
}

/// As it was typed: its case goes out as it is.
fn header_name(text: &str) -> Result<String, String> {
    let named: Result<http::HeaderName, _> = text.parse();
    named.map(|_| text.to_owned()).map_err(|_| "is no name of a header".to_owned())
}

fn pointer(text: &str) -> Result<String, String> {
    match text.is_empty() || text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err(format!("a pointer is empty or begins with a slash, such as /{text}")),
    }
}
