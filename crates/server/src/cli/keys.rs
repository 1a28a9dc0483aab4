//! `onceward keys`: records listed, read, settled and forgotten.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::Method;
use serde_json::{Value, json};

use super::{
    Failure,
    access::Access,
    args::{BodyFile, FilterArgs, KeysCommand, NameOrNone, OutputArgs, ResolveArgs, Settlement, Since, StateName},
};
use crate::{
    admin::{Answer, Find, ForgetQuery, ListQuery, Resolve, Settle},
    config::Environment,
};

/// The most that a recorded answer given on the command line may have.
const BODY_BYTES_MAX: u64 = 1 << 20;

pub(super) async fn run(command: KeysCommand) -> Result<(), Failure> {
    match command {
        KeysCommand::List { filter, target, output } => {
            let access = Access::open(&target).await?;
            let records = list(&access, &query(&filter)).await;
            access.close().await;
            print(&records?, output);
            Ok(())
        }
        KeysCommand::Get { name, target, output } => {
            let access = Access::open(&target).await?;
            let record = one(&access, &name.name).await;
            access.close().await;
            print_one(&record?, output);
            Ok(())
        }
        KeysCommand::Forget { name, erase, force, dry_run, target, output } => {
            let access = Access::open(&target).await?;
            let done = forget(&access, &name.name, ForgetQuery { erase, force }, dry_run).await;
            access.close().await;
            let (record, what) = done?;
            report(&Settled::all(vec![record]), what, output);
            Ok(())
        }
        KeysCommand::Resolve(args) => {
            args.validate().map_err(|error| Failure::usage(error.to_string()))?;
            let access = Access::open(&args.target).await?;
            let done = resolve(&access, &args).await;
            access.close().await;
            let settled = done?;
            report(&settled, if args.dry_run { "would be settled" } else { "settled" }, args.output);
            settled.result()
        }
    }
}

async fn forget(
    access: &Access,
    name: &NameOrNone,
    how: ForgetQuery,
    dry_run: bool,
) -> Result<(Value, &'static str), Failure> {
    let record = one(access, name).await?;
    let ForgetQuery { erase, force } = how;
    if dry_run {
        return Ok((record, if erase { "would be erased" } else { "would be forgotten" }));
    }
    let path = format!("/records/{}?erase={erase}&force={force}", id_of(&record));
    access.call(Method::DELETE, &path, None).await?;
    Ok((
        record,
        if erase { "erased: the key is unusable until its retention ends" } else { "forgotten: the key is new again" },
    ))
}

/// What became of one record or of many.
#[derive(Default)]
struct Settled {
    records: Vec<Value>,
    /// The ids of those that were not, and why.
    failed: Vec<(String, String)>,
    /// How many were not tried, because too many before them failed.
    untried: usize,
}

impl Settled {
    fn all(records: Vec<Value>) -> Self {
        Self { records, ..Self::default() }
    }

    fn result(&self) -> Result<(), Failure> {
        let not = self.failed.len() + self.untried;
        if not == 0 {
            return Ok(());
        }
        let all = not + self.records.len();
        Err(Failure::not_well(format!("{not} of {all} records were not settled; look at them, and run it again")))
    }
}

/// Beyond so many in a row, a process that is gone or refuses everything is not asked any further.
const FAILURES_IN_A_ROW_MAX: usize = 10;

async fn resolve(access: &Access, args: &ResolveArgs) -> Result<Settled, Failure> {
    let body = args.body.as_ref().map(read_body).transpose()?;
    let answer = args.status.map(|status| Answer {
        status,
        body: STANDARD.encode(body.unwrap_or_default()),
        content_type: None,
    });
    let settle = match args.outcome {
        Settlement::Executed => Settle::Executed,
        Settlement::NotExecuted => Settle::NotExecuted,
        Settlement::Failed => Settle::Failed,
    };
    let records = if args.state.is_some() {
        let filter = FilterArgs { state: Some(StateName::Unknown), route: args.name.route.clone(), since: args.since };
        list(access, &query(&filter)).await?
    } else {
        vec![one(access, &args.name).await?]
    };
    if args.dry_run {
        return Ok(Settled::all(records));
    }
    let wanted = serde_json::to_value(Resolve { settle, answer }).unwrap_or_default();
    let bar = progress(records.len());
    let mut settled = Settled::default();
    let mut in_a_row = 0;
    for record in &records {
        if in_a_row == FAILURES_IN_A_ROW_MAX {
            settled.untried = records.len() - settled.records.len() - settled.failed.len();
            break;
        }
        let path = format!("/records/{}/resolve", id_of(record));
        match access.call(Method::POST, &path, Some(&wanted)).await {
            Ok(record) => {
                in_a_row = 0;
                settled.records.push(record);
            }
            // Of one, or of a command that no record will take, its own words are the best.
            Err(failure) if args.state.is_none() || failure.code == 2 => return Err(failure),
            // Somebody or a late answer was faster with this one; the others are none the worse for it.
            Err(failure) => {
                in_a_row += 1;
                settled.failed.push((id_of(record).to_owned(), failure.message));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(settled)
}

/// A bar on stderr where that is a terminal and there is something to wait for.
fn progress(count: usize) -> indicatif::ProgressBar {
    if count < 2 {
        return indicatif::ProgressBar::hidden();
    }
    let bar = indicatif::ProgressBar::new(count as u64);
    let style = indicatif::ProgressStyle::with_template("{bar:40} {pos}/{len} records, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    // So that it is there however short the work is.
    bar.tick();
    bar
}

fn read_body(from: &BodyFile) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    let (name, read) = match from {
        BodyFile::Stdin => {
            ("stdin".to_owned(), std::io::stdin().lock().take(BODY_BYTES_MAX + 1).read_to_end(&mut body))
        }
        BodyFile::File(path) => {
            let file = std::fs::File::open(path);
            (path.display().to_string(), file.and_then(|file| file.take(BODY_BYTES_MAX + 1).read_to_end(&mut body)))
        }
    };
    read.map_err(|error| Failure::usage(format!("--body: {name}: {error}")))?;
    if body.len() as u64 > BODY_BYTES_MAX {
        return Err(Failure::usage(format!("--body: {name}: at most {BODY_BYTES_MAX} bytes are recorded")));
    }
    Ok(body)
}

fn query(filter: &FilterArgs) -> ListQuery {
    let state = filter.state.map(|state| match state {
        StateName::InFlight => "in_flight",
        StateName::Completed => "completed",
        StateName::Unknown => "unknown",
        StateName::Failed => "failed",
        StateName::Erased => "erased",
        StateName::NotExecuted => "not_executed",
    });
    let since = filter.since.map(|since| match since {
        Since::Ago(span) => format!("-{}", span.as_secs()),
        Since::At(at) => at.to_string(),
    });
    ListQuery { state: state.map(Into::into), route: filter.route.clone(), since, after: None, limit: Some(1000) }
}

async fn list(access: &Access, query: &ListQuery) -> Result<Vec<Value>, Failure> {
    let mut query = query.clone();
    let mut records = Vec::new();
    loop {
        let mut page = access.call(Method::GET, &format!("/records?{}", encoded(&query)), None).await?;
        if let Some(Value::Array(more)) = page.get_mut("records").map(Value::take) {
            records.extend(more);
        }
        match page.get("next").and_then(Value::as_str) {
            Some(next) => query.after = Some(next.to_owned()),
            None => return Ok(records),
        }
    }
}

fn encoded(query: &ListQuery) -> String {
    let mut pairs = Vec::new();
    let limit = query.limit.map(|limit| limit.to_string());
    for (name, value) in [
        ("state", &query.state),
        ("route", &query.route),
        ("since", &query.since),
        ("after", &query.after),
        ("limit", &limit),
    ] {
        if let Some(value) = value {
            pairs.push(format!("{name}={}", super::percent_encoded(value)));
        }
    }
    pairs.join("&")
}

async fn one(access: &Access, name: &NameOrNone) -> Result<Value, Failure> {
    if let Some(id) = &name.record_id {
        if id.parse::<onceward::RecordId>().is_err() {
            return Err(Failure::usage(format!("{id:?} is no record id; that is 43 characters of base64url")));
        }
        return access.call(Method::GET, &format!("/records/{id}"), None).await;
    }
    let authorization = match &name.authorization {
        Some(secret) => {
            let followed = secret.follow(&Environment::of_process());
            Some(followed.map_err(|why| Failure::usage(format!("--authorization: {why}")))?.expose().to_owned())
        }
        None => None,
    };
    let find = Find {
        key: name.key.clone().unwrap_or_default(),
        tenant: name.tenant.clone(),
        route: name.route.clone(),
        authorization,
    };
    let wanted = serde_json::to_value(find).unwrap_or_default();
    let found = access.call(Method::POST, "/records/find", Some(&wanted)).await?;
    match found.get("records").and_then(Value::as_array).map(Vec::as_slice) {
        Some([record]) => Ok(record.clone()),
        Some([]) | None => Err(Failure::not_well(
            "there is no record of this key for that caller; say --route (\"default METHOD PATH\" where no route matched), \
             --authorization and --tenant as the request had them",
        )),
        Some(many) => {
            let routes: Vec<&str> = many.iter().filter_map(|record| record.get("route")?.as_str()).collect();
            Err(Failure::usage(format!("the key is on several routes, say which with --route: {}", routes.join(", "))))
        }
    }
}

fn id_of(record: &Value) -> &str {
    record.get("record_id").and_then(Value::as_str).unwrap_or_default()
}

// ===== printing =====

fn print(records: &[Value], output: OutputArgs) {
    if output.json {
        println!("{}", json!({ "records": records }));
        return;
    }
    if records.is_empty() {
        eprintln!("no records");
        return;
    }
    const COLUMNS: [&str; 6] = ["record_id", "route", "state", "attempt", "status", "claimed_at"];
    let rows: Vec<Vec<String>> =
        records.iter().map(|record| COLUMNS.map(|column| cell(record, column)).to_vec()).collect();
    let width = |at: usize| {
        rows.iter().filter_map(|row| row.get(at)).map(String::len).chain(COLUMNS.get(at).map(|name| name.len())).max()
    };
    let widths: Vec<usize> = (0..COLUMNS.len()).map(|at| width(at).unwrap_or(0)).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(&COLUMNS.map(String::from));
    rows.iter().for_each(|row| line(row));
}

fn print_one(record: &Value, output: OutputArgs) {
    if output.json {
        println!("{record}");
        return;
    }
    for (name, _) in record.as_object().into_iter().flatten() {
        println!("{name:<14}{}", cell(record, name));
    }
}

fn report(settled: &Settled, what: &str, output: OutputArgs) {
    let records = &settled.records;
    if output.json {
        let failed: Vec<Value> =
            settled.failed.iter().map(|(id, why)| json!({ "record_id": id, "why": why })).collect();
        println!("{}", json!({ "records": records, "done": what, "failed": failed, "untried": settled.untried }));
        return;
    }
    for record in records {
        println!("{}  {}  {what}", id_of(record), cell(record, "state"));
    }
    for (id, why) in &settled.failed {
        eprintln!("{id}: {why}");
    }
    eprintln!("{} {what}", if records.len() == 1 { "1 record".into() } else { format!("{} records", records.len()) });
}

fn cell(record: &Value, name: &str) -> String {
    match record.get(name) {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}
