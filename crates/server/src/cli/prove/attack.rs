//! The attacks. Each does to one fresh key what clients, networks and bad luck do to it, and says what it saw.
//!
//! What a sound endpoint may do differs little between them: one effect at most, and whoever comes again in good order is
//! answered in the end.

use std::time::Duration;

use clap::ValueEnum;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::effects::Counter;
use super::message::{Body, Message, Operation, Template};
use super::shell::{self, Trust};
use super::wire::{Answer, Client, Connection, NoAnswer};

/// The longest answer of the endpoint that is read.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Between two repetitions of one request.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The length of a long key: more than the 255 characters that are customary.
const LONG_KEY_CHARS: usize = 300;

/// What is done to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attack {
    /// The same again after the answer, twice
    Repeat,
    /// Many at once with one key
    Race,
    /// The client closes before the answer, and comes again
    LostAnswer,
    /// Many at once, half of which close before the answer
    LostRace,
    /// The connection is killed in the middle of the request's body
    CutRequest,
    /// The connection is killed at the first bytes of the answer
    CutAnswer,
    /// Another body under the key, after the answer
    OtherBody,
    /// Two bodies at once under one key
    OtherBodyRace,
    /// The same key in quotes and bare
    KeyQuotes,
    /// The key's header in upper, lower and mixed case
    HeaderCase,
    /// The key's header on two lines
    KeyTwice,
    /// An empty key, twice
    EmptyKey,
    /// A key of 300 characters, twice
    LongKey,
    /// Two keys of 300 characters that differ in the last one
    NearKeys,
}

impl Attack {
    /// Its name, as it is typed.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Why it cannot be tried with this request, if it cannot.
    pub(super) fn is_not_for(self, template: &Template, counter: &Counter) -> Option<&'static str> {
        let nobody = Operation::new("", 0);
        match self {
            Self::CutRequest if template.body.bytes(&nobody).len() < 2 => Some("the request has no body to cut"),
            Self::OtherBody | Self::OtherBodyRace if template.other.is_none() => {
                Some("no other body can be made of this one: give it with --other-body")
            }
            Self::EmptyKey if counter.is_by_key() => Some("effects are counted by key, and this one has none"),
            _ => None,
        }
    }
}

/// What one round showed, before its effects are counted.
pub(super) struct Evidence {
    /// Those whose effects count.
    pub(super) operations: Vec<Operation>,
    /// Everything that was heard.
    pub(super) heard: Vec<Result<Answer, NoAnswer>>,
    /// What whoever comes in good order is told at the end.
    pub(super) last: Result<Answer, NoAnswer>,
    /// The effects that a sound endpoint has at most.
    pub(super) most: u64,
    /// Those that it has at least, where `last` is a success.
    pub(super) least: u64,
    /// The request may be refused, if it then has no effect.
    pub(super) may_refuse: bool,
    /// Why the attack did not take place.
    pub(super) failed: Option<String>,
    /// Worth saying, and no fault.
    pub(super) note: Option<String>,
    /// The commands that do the same, after the one that draws the key.
    pub(super) steps: Vec<String>,
    pub(super) draw: String,
}

impl Evidence {
    fn new(message: &Message<'_>, heard: Vec<Result<Answer, NoAnswer>>, steps: Vec<String>) -> Self {
        let last = heard.last().cloned().unwrap_or(Err(NoAnswer::Closed));
        Self {
            operations: vec![message.operation.clone()],
            heard,
            last,
            most: 1,
            least: 1,
            may_refuse: false,
            failed: None,
            note: None,
            steps,
            draw: shell::draw(0),
        }
    }
}

/// What attacks are made with.
pub(super) struct Attacker<'a> {
    pub(super) template: &'a Template,
    pub(super) client: &'a Client,
    pub(super) trust: &'a Trust,
    pub(super) at_once: usize,
    /// How long a plain request took.
    pub(super) latency: Duration,
    pub(super) timeout: Duration,
}

impl Attacker<'_> {
    /// Does `attack` to the key of `operation`, which nobody has used.
    pub(super) async fn run(&self, attack: Attack, operation: &Operation, rng: &mut fastrand::Rng) -> Evidence {
        let message = Message::new(self.template, operation);
        match attack {
            Attack::Repeat => self.repeat(&message).await,
            Attack::Race => self.race(&message, false, rng).await,
            Attack::LostRace => self.race(&message, true, rng).await,
            Attack::LostAnswer => self.lost_answer(&message, rng).await,
            Attack::CutRequest => self.cut_request(&message, rng).await,
            Attack::CutAnswer => self.cut_answer(&message, rng).await,
            Attack::OtherBody => self.other_body(&message).await,
            Attack::OtherBodyRace => self.other_body_race(&message).await,
            Attack::KeyQuotes => {
                let (name, value) = (&self.template.key_header, message.spelled(!self.template.is_quoted));
                let variant = message.clone().with_key(&[(name, &value)]);
                let said = if self.template.is_quoted { "the bare key" } else { "the quoted key" };
                self.variants(&message, &[variant], Some(said)).await
            }
            Attack::HeaderCase => {
                let (name, value) = (&self.template.key_header, message.spelled(self.template.is_quoted));
                let mixed: String = name
                    .chars()
                    .map(|letter| if rng.bool() { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() })
                    .collect();
                let spellings = [name.to_ascii_lowercase(), name.to_ascii_uppercase(), mixed];
                let variants = spellings.map(|name| message.clone().with_key(&[(&name, &value)]));
                self.variants(&message, &variants, None).await
            }
            Attack::KeyTwice => {
                let (name, value) = (&self.template.key_header, message.spelled(self.template.is_quoted));
                let variant = message.clone().with_key(&[(name, &value), (name, &value)]);
                self.variants(&message, &[variant], Some("the key on two lines")).await
            }
            Attack::EmptyKey => {
                let value = if self.template.is_quoted { "\"\"" } else { "" };
                self.twice_refusable(&message.with_key(&[(&self.template.key_header, value)])).await
            }
            Attack::LongKey => {
                let evidence = self.twice_refusable(&self.long(operation, 'a')).await;
                Evidence { draw: shell::draw(fill(operation)), ..evidence }
            }
            Attack::NearKeys => self.near_keys(operation).await,
        }
    }

    /// Sends it once.
    pub(super) async fn ask(&self, message: &Message<'_>) -> Result<Answer, NoAnswer> {
        self.client.ask(&message.bytes().0, BODY_BYTES_MAX).await
    }

    /// Sends it as a client in good order does: again, with pauses, while it is told to come again or nothing at all.
    async fn insist(&self, message: &Message<'_>) -> Result<Answer, NoAnswer> {
        let end = Instant::now() + self.timeout;
        let mut pause = Duration::from_millis(50);
        loop {
            let told = self.ask(message).await;
            let wished = match &told {
                Ok(answer) if answer.is_worth_another_try() => answer.retry_after(),
                Ok(_) => return told,
                Err(_) => None,
            };
            let wait = wished.unwrap_or(pause);
            if Instant::now() + wait >= end {
                return told;
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn repeat(&self, message: &Message<'_>) -> Evidence {
        let mut heard = vec![self.insist(message).await];
        heard.push(self.insist(message).await);
        heard.push(self.insist(message).await);
        Evidence::new(message, heard, vec![shell::send(message, self.trust); 3])
    }

    /// All but the last byte of each request is there before the last bytes go out together.
    async fn held_back(&self, requests: &[Vec<u8>]) -> Vec<Result<(Connection, u8), NoAnswer>> {
        let open = |request: &Vec<u8>| {
            let request = request.clone();
            async move {
                let mut connection = self.client.open().await?;
                let Some((last, before)) = request.split_last() else { return Err(NoAnswer::Closed) };
                connection.send(before, self.client.deadline()).await?;
                Ok((connection, *last))
            }
        };
        join_all(requests.iter().map(open)).await
    }

    async fn release(&self, connection: &mut Connection, last: u8) -> Result<(), NoAnswer> {
        connection.send(&[last], self.client.deadline()).await
    }

    async fn race(&self, message: &Message<'_>, half_leave: bool, rng: &mut fastrand::Rng) -> Evidence {
        let requests = vec![message.bytes().0; self.at_once];
        let after = self.somewhen(rng);
        let by_reset = rng.bool();
        let racers = self.held_back(&requests).await;
        let running = racers.iter().filter(|racer| racer.is_ok()).count();
        let run = |(at, racer): (usize, Result<(Connection, u8), NoAnswer>)| async move {
            let (mut connection, last) = racer?;
            self.release(&mut connection, last).await?;
            if half_leave && at % 2 == 1 {
                tokio::time::sleep(after).await;
                connection.kill(by_reset);
                return Ok(None);
            }
            connection.answer(BODY_BYTES_MAX, self.client.deadline()).await.map(Some)
        };
        let told = join_all(racers.into_iter().enumerate().map(run)).await;
        let mut heard: Vec<_> = told.into_iter().filter_map(Result::transpose).collect();
        heard.push(self.insist(message).await);
        let send = shell::send(message, self.trust);
        let race = match half_leave {
            true => {
                shell::at_once(&[send.clone(), shell::abandon(message, self.trust, after)], self.at_once.div_ceil(2))
            }
            false => shell::at_once(std::slice::from_ref(&send), self.at_once),
        };
        let mut evidence = Evidence::new(message, heard, vec![race, send]);
        evidence.failed = (running < 2).then(|| format!("{running} of {} connections could be opened", self.at_once));
        evidence
    }

    async fn lost_answer(&self, message: &Message<'_>, rng: &mut fastrand::Rng) -> Evidence {
        let after = self.somewhen(rng);
        let by_reset = rng.bool();
        let leave = async {
            let mut connection = self.client.open().await?;
            connection.send(&message.bytes().0, self.client.deadline()).await?;
            tokio::time::sleep(after).await;
            connection.kill(by_reset);
            Ok::<_, NoAnswer>(())
        };
        let left = leave.await;
        let heard = vec![self.insist(message).await];
        let steps = vec![shell::abandon(message, self.trust, after), shell::send(message, self.trust)];
        let mut evidence = Evidence::new(message, heard, steps);
        evidence.failed = left.err().map(|error| format!("the request that was to be left: {error}"));
        evidence
    }

    async fn cut_request(&self, message: &Message<'_>, rng: &mut fastrand::Rng) -> Evidence {
        let (bytes, begin) = message.bytes();
        let cut = rng.usize(begin + 1..bytes.len());
        let (after, by_reset) = (self.somewhen(rng), rng.bool());
        let kill = async {
            let mut connection = self.client.open().await?;
            connection.send(bytes.get(..cut).unwrap_or_default(), self.client.deadline()).await?;
            tokio::time::sleep(after).await;
            connection.kill(by_reset);
            Ok::<_, NoAnswer>(())
        };
        let killed = kill.await;
        let heard = vec![self.insist(message).await];
        let steps = vec![shell::cut(message, self.trust, cut - begin, after), shell::send(message, self.trust)];
        let mut evidence = Evidence::new(message, heard, steps);
        evidence.failed = killed.err().map(|error| format!("the request that was to be cut: {error}"));
        evidence
    }

    async fn cut_answer(&self, message: &Message<'_>, rng: &mut fastrand::Rng) -> Evidence {
        let by_reset = rng.bool();
        let kill = async {
            let mut connection = self.client.open().await?;
            connection.send(&message.bytes().0, self.client.deadline()).await?;
            connection.first_bytes(self.client.deadline()).await?;
            connection.kill(by_reset);
            Ok::<_, NoAnswer>(())
        };
        let killed = kill.await;
        let heard = vec![self.insist(message).await];
        let steps = vec![shell::cut_answer(message, self.trust), shell::send(message, self.trust)];
        let mut evidence = Evidence::new(message, heard, steps);
        evidence.failed = killed.err().map(|error| format!("the answer that was to be cut: {error}"));
        evidence
    }

    /// The message with the other body; callers have made sure that there is one.
    fn other<'a>(&'a self, message: &Message<'a>) -> Message<'a> {
        let nothing = Body::Text(String::new());
        message.clone().with_body(self.template.other.as_ref().unwrap_or(&nothing))
    }

    async fn other_body(&self, message: &Message<'_>) -> Evidence {
        let other = self.other(message);
        let mut heard = vec![self.insist(message).await, self.insist(&other).await];
        let told = heard.last().cloned();
        heard.push(self.insist(message).await);
        let send = shell::send(message, self.trust);
        let mut evidence = Evidence::new(message, heard, vec![send.clone(), shell::send(&other, self.trust), send]);
        if let Some(Ok(told)) = told
            && told.is_success()
        {
            evidence.note = Some(format!("another body is answered {}, as if it were the first", told.status));
        }
        evidence
    }

    async fn other_body_race(&self, message: &Message<'_>) -> Evidence {
        let other = self.other(message);
        let (one, two) = (message.bytes().0, other.bytes().0);
        let requests: Vec<Vec<u8>> =
            (0..self.at_once).map(|at| if at % 2 == 0 { one.clone() } else { two.clone() }).collect();
        let racers = self.held_back(&requests).await;
        let running = racers.iter().filter(|racer| racer.is_ok()).count();
        let run = |racer: Result<(Connection, u8), NoAnswer>| async move {
            let (mut connection, last) = racer?;
            self.release(&mut connection, last).await?;
            connection.answer(BODY_BYTES_MAX, self.client.deadline()).await
        };
        let mut heard = join_all(racers.into_iter().map(run)).await;
        // Either may have been first; that one is answered from now on.
        let (first, second) = (self.insist(message).await, self.insist(&other).await);
        let is_success = |told: &Result<Answer, NoAnswer>| told.as_ref().is_ok_and(Answer::is_success);
        let won = if is_success(&first) || !is_success(&second) { first.clone() } else { second.clone() };
        heard.extend([first, second]);
        let sends = [shell::send(message, self.trust), shell::send(&other, self.trust)];
        let race = shell::at_once(&sends, self.at_once.div_ceil(2));
        let mut evidence = Evidence::new(message, heard, vec![race]);
        evidence.last = won;
        evidence.failed = (running < 2).then(|| format!("{running} of {} connections could be opened", self.at_once));
        evidence
    }

    /// The plain message, then others that mean the same, then the plain one again. `optional` names what may be refused.
    async fn variants(&self, message: &Message<'_>, variants: &[Message<'_>], optional: Option<&str>) -> Evidence {
        let mut heard = vec![self.insist(message).await];
        let mut steps = vec![shell::send(message, self.trust)];
        let mut refused = None;
        for variant in variants {
            let told = self.insist(variant).await;
            if let Ok(answer) = &told
                && !answer.is_success()
            {
                refused = refused.or(Some(answer.clone()));
            }
            heard.push(told);
            steps.push(shell::send(variant, self.trust));
        }
        heard.push(self.insist(message).await);
        let mut evidence = Evidence::new(message, heard, steps);
        match (refused, optional) {
            (Some(answer), Some(what)) => evidence.note = Some(format!("{what} is refused with {}", answer.status)),
            // It is the same request by every reading of HTTP, and its answer is the one that counts.
            (Some(answer), None) => evidence.last = Ok(answer),
            (None, _) => {}
        }
        evidence
    }

    /// A message that may be refused, and must else take effect once however often it comes.
    async fn twice_refusable(&self, message: &Message<'_>) -> Evidence {
        let heard = vec![self.insist(message).await, self.insist(message).await];
        let mut evidence = Evidence::new(message, heard, vec![shell::send(message, self.trust); 2]);
        evidence.may_refuse = true;
        evidence
    }

    /// A message whose key is long and ends so.
    fn long(&self, operation: &Operation, end: char) -> Message<'_> {
        let drawn = format!("{}{}", operation.key, "0".repeat(fill(operation)));
        Message::new(self.template, &Operation { key: format!("{drawn}{end}"), drawn, number: operation.number })
    }

    async fn near_keys(&self, operation: &Operation) -> Evidence {
        let (one, two) = (self.long(operation, 'a'), self.long(operation, 'b'));
        let heard = vec![self.insist(&one).await, self.insist(&two).await];
        let taken = heard.iter().filter(|told| told.as_ref().is_ok_and(Answer::is_success)).count() as u64;
        let steps = vec![shell::send(&one, self.trust), shell::send(&two, self.trust)];
        let mut evidence = Evidence::new(&one, heard, steps);
        evidence.operations.push(two.operation);
        evidence.draw = shell::draw(fill(operation));
        evidence.may_refuse = true;
        (evidence.most, evidence.least) = (taken.max(1), taken);
        evidence
    }

    /// A moment within the time that a request takes, or a little after.
    fn somewhen(&self, rng: &mut fastrand::Rng) -> Duration {
        self.latency.mul_f64(rng.f64() * 1.25)
    }
}

/// The zeros that make a key long, but for its last character.
fn fill(operation: &Operation) -> usize {
    LONG_KEY_CHARS.saturating_sub(operation.key.len() + 1)
}
