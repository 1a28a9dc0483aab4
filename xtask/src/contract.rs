//! `cargo xtask contract`: each row of the contract with the tests that show it from outside, and their result.
//!
//! The rows are those of `docs/protocol.md`: the cases of section 4, by their first words with hyphens
//! (`repeated-completed`), and the keys of section 5 (`route.retention`). A test names the rows that it is a case for
//! in a line right above it, among the attributes:
//!
//! ```text
//! // contract: repeated-completed, route.replay.header
//! #[tokio::test]
//! async fn a_replay_is_the_first_answer() {
//! ```
//!
//! A row without a case is an error, and so are a case that did not
//! run or failed, a line that names no row, and a case for a row that is marked as not built.
//!
//! With `--store postgres`, `--store redis` or `--store tiered --durability strict` (or `journaled` or `cache`, of all routes) the tests that start gateways run on a server of that kind instead;
//! `embedded_only` lists those that stay with the embedded store, each with its reason.

mod embedded_only;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context as _, bail, ensure};

use self::embedded_only::left_out;
use crate::install;
use crate::step::{Counts, Shown};
use crate::tree::{self, Text};

const CONTRACT: &str = "docs/protocol.md";
const TESTS: &str = "crates/server/tests/";
const PACKAGE: &str = "onceward-server";
const SAYS: &str = "// contract: ";
/// The binaries whose tests start gateways.
const ON_A_STORE: [&str; 2] = ["proxy", "standards"];

/// Which store the tests have run on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    /// Each gateway's own folder.
    Embedded,
    /// One PostgreSQL server.
    Postgres,
    /// One Redis server.
    Redis,
    /// One of each, with all routes strict or all in the cache.
    Tiered(&'static str),
}

/// Runs the tests from outside, and prints the table.
///
/// # Errors
/// Where a row has no case, or a case fails or is gone.
pub(crate) fn run(arguments: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    install::load_balancers()?;
    let runner = match install::find("cargo-nextest") {
        Some(_) => "cargo nextest run --status-level pass",
        None => "cargo test",
    };
    let run = format!("{runner} --no-fail-fast");
    match arguments {
        [] | ["--store", "embedded"] => {
            let done = Shown::new(&format!("{run} --package {PACKAGE} --tests")).run(counts);
            print(Store::Embedded, &counts.ended)?;
            done
        }
        ["--store", "postgres", modules @ ..] => on_a_server(Store::Postgres, &run, modules, counts),
        ["--store", "redis", modules @ ..] => on_a_server(Store::Redis, &run, modules, counts),
        ["--store", "tiered", "--durability", durability, modules @ ..] => {
            let durability = DURABILITIES.into_iter().find(|known| known == durability);
            let durability =
                durability.with_context(|| format!("--durability is one of {}", DURABILITIES.join(", ")))?;
            on_a_server(Store::Tiered(durability), &run, modules, counts)
        }
        _ => bail!(
            "{arguments:?} is not `--store embedded`, `--store postgres`, `--store redis` or \
             `--store tiered --durability` with one of {}",
            DURABILITIES.join(", ")
        ),
    }
}

/// Of all routes, where there are both.
const DURABILITIES: [&str; 3] = ["strict", "journaled", "cache"];

/// The modules that `cargo xtask test` runs on Postgres, on Redis and on both, which has no time for all of them: what a key's record is asked
/// and told, over crashes too.
pub(crate) const IN_THE_GATE: [&str; 5] = ["crashes::", "duplicates::", "keys::", "replays::", "unknown::"];

/// The same with every gateway's records in a database of its own, on one server. With modules only their tests, and no
/// table.
fn on_a_server(store: Store, run: &str, modules: &[&str], counts: &mut Counts) -> anyhow::Result<()> {
    let gone = embedded_only::gone(&tree::texts()?, TESTS);
    ensure!(gone.is_empty(), "{}", gone.join("\n"));
    install::databases()?;
    // What the tests of TLS ask from outside.
    install::program("curl", "curl")?;
    install::program("openssl", "openssl")?;
    // Which end with the tests.
    let (postgres, redis);
    let mut env = Vec::new();
    let in_redis = if matches!(store, Store::Redis | Store::Tiered(_)) {
        redis = servers::Redis::start(&[("databases", "10000"), ("maxclients", "5000")])?;
        Some(redis.url())
    } else {
        None
    };
    // Of the workspace, with the features that its tests have, so that nothing is built again between them and these.
    let binaries = ON_A_STORE.map(|binary| format!("--test {binary}")).join(" ");
    let url = if let (Store::Redis, Some(url)) = (store, &in_redis) {
        url.clone()
    } else {
        // A journal is not kept by a server that may lose what it has committed.
        let fsync = if store == Store::Tiered("journaled") { "on" } else { "off" };
        postgres = servers::Postgres::start(&[("max_connections", "500"), ("fsync", fsync)])?;
        postgres.create_database("contract")?;
        Shown::new(&format!("cargo build --workspace --bin onceward {binaries}")).run(counts)?;
        let binary = tree::shown(&tree::target().join("debug/onceward"));
        Shown::new(&format!("{binary} migrate --database {}", postgres.url("contract"))).run(counts)?;
        postgres.url("").trim_end_matches('/').to_owned()
    };
    if let (Store::Tiered(durability), Some(in_redis)) = (store, in_redis) {
        env.extend([("CONTRACT_IN_FRONT", in_redis), ("CONTRACT_DURABILITY", durability.to_owned())]);
    }
    env.push(("CONTRACT_STORE", url));
    for (test, why) in left_out(store) {
        println!("left out: {test}: {why}");
    }
    let mut of_this = Counts::default();
    let left_out: String = left_out(store).iter().map(|(test, _)| format!(" --skip {test}")).collect();
    let modules_said = modules.join(" ");
    let shown = Shown::new(&format!("{run} --workspace {binaries} -- {modules_said}{left_out}"));
    let done = env.iter().fold(shown, |shown, (name, value)| shown.env(name, value)).run(&mut of_this);
    let printed = if modules.is_empty() { print(store, &of_this.ended) } else { Ok(()) };
    counts.add(of_this);
    printed.and(done)
}

/// Prints the table for tests that have been run.
///
/// # Errors
/// As [`run`].
pub(crate) fn print(store: Store, ended: &[Ended]) -> anyhow::Result<()> {
    let (table, wrong) = table(&tree::texts()?, store, ended);
    print!("{table}");
    ensure!(wrong.is_empty(), "the contract is not shown whole:\n{}", wrong.join("\n"));
    Ok(())
}

/// A test that ended, as its runner tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// `onceward-server::proxy`; empty where the runner does not say.
    binary: String,
    /// `keys::both_spellings_of_a_key_are_the_same_key`
    test: String,
    passed: bool,
}

impl Ended {
    /// Reads a line of nextest or of `cargo test`.
    pub(crate) fn read(line: &str) -> Option<Self> {
        if let Some(rest) = line.strip_prefix("test ") {
            let (test, result) = rest.trim_end().split_once(" ... ")?;
            let passed = match result {
                "ok" => true,
                "FAILED" => false,
                _ => return None,
            };
            return Some(Self { binary: String::new(), test: test.to_owned(), passed });
        }
        let (status, rest) = line.trim().split_once(" [")?;
        let passed = match status {
            "PASS" | "LEAK" => true,
            "FAIL" | "TIMEOUT" | "SIGABRT" | "SIGKILL" | "SIGSEGV" | "LEAK-FAIL" => false,
            _ => return None,
        };
        let (_, rest) = rest.split_once(']')?;
        // Newer versions count along: `(12/40)`.
        let rest = match rest.trim_start().strip_prefix('(') {
            Some(counted) => counted.split_once(')')?.1,
            None => rest,
        };
        let (binary, test) = rest.trim().split_once(' ')?;
        Some(Self { binary: binary.to_owned(), test: test.trim().to_owned(), passed })
    }
}

/// A row of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    name: String,
    is_built: bool,
}

/// A test that says which rows it is a case for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Case {
    rows: Vec<String>,
    /// `onceward-server::proxy`
    binary: String,
    /// `keys`, where the binary has several files.
    module: Option<String>,
    function: String,
    /// Where the line stands.
    at: String,
}

impl Case {
    /// Why it does not run on this store, in two words; none where it does.
    fn left_out(&self, store: Store) -> Option<&'static str> {
        if store == Store::Embedded {
            return None;
        }
        let starts = ON_A_STORE.iter().any(|binary| self.binary == format!("{PACKAGE}::{binary}"));
        let stays = left_out(store).iter().any(|(test, _)| {
            let (module, function) = test.rsplit_once("::").unwrap_or(("", test));
            let is_module = self.module.as_ref().is_none_or(|own| own.replace('/', "::") == module);
            is_module && function == self.function
        });
        if !starts { Some("no store") } else { stays.then_some("left out") }
    }

    /// How it ended; none where it did not run.
    fn result(&self, ended: &[Ended]) -> Option<bool> {
        let mine = ended.iter().filter(|ended| {
            let (modules, function) = ended.test.rsplit_once("::").unwrap_or(("", &ended.test));
            let in_binary = ended.binary.is_empty() || ended.binary == self.binary;
            // A module in a folder is named by the folder first.
            let first = modules.split("::").next();
            let in_module = self.module.as_ref().is_none_or(|module| module.split('/').next() == first);
            in_binary && in_module && function == self.function
        });
        let results: Vec<bool> = mine.map(|ended| ended.passed).collect();
        (!results.is_empty()).then(|| results.iter().all(|passed| *passed))
    }
}

/// What is wrong before any test has run: rows without a case, and lines that name no row.
pub(crate) fn gaps(texts: &[Text]) -> Vec<String> {
    read(texts).2
}

/// The rows, the cases, and what is wrong with them.
fn read(texts: &[Text]) -> (Vec<Row>, Vec<Case>, Vec<String>) {
    let Some(contract) = texts.iter().find(|text| text.path == CONTRACT) else {
        return (Vec::new(), Vec::new(), vec![format!("{CONTRACT} is gone")]);
    };
    let (rows, mut wrong) = (rows(&contract.text), Vec::new());
    let cases: Vec<Case> =
        texts.iter().filter(|text| text.path.starts_with(TESTS)).flat_map(|text| cases(text, &mut wrong)).collect();
    for case in &cases {
        for row in case.rows.iter().filter(|name| rows.iter().all(|row| row.name != **name)) {
            wrong.push(format!("{}: {CONTRACT} has no row `{row}`", case.at));
        }
    }
    if rows.is_empty() {
        wrong.push(format!("{CONTRACT}: no rows to read"));
    }
    for row in &rows {
        let name = &row.name;
        match (row.is_built, cases.iter().any(|case| case.rows.contains(name))) {
            (false, true) => wrong.push(format!("`{name}` has a case and is marked as not built: take the † away")),
            (true, false) => {
                wrong.push(format!("`{name}` has no case: write `{SAYS}{name}` above the test that shows it"));
            }
            (true, true) | (false, false) => {}
        }
    }
    (rows, cases, wrong)
}

/// The table as text, and what is wrong.
fn table(texts: &[Text], store: Store, ended: &[Ended]) -> (String, Vec<String>) {
    let (rows, cases, mut wrong) = read(texts);
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut table = String::new();
    for row in &rows {
        let of_row: Vec<&Case> = cases.iter().filter(|case| case.rows.contains(&row.name)).collect();
        if of_row.is_empty() {
            let _ = writeln!(table, "{:width$}  {}", row.name, if row.is_built { "NO CASE" } else { "not built" });
        }
        for (at, case) in of_row.iter().enumerate() {
            let name = if at == 0 { row.name.as_str() } else { "" };
            let left_out = case.left_out(store);
            let result = match (left_out, case.result(ended)) {
                (Some(why), None) => why,
                (_, Some(true)) => "ok",
                (_, Some(false)) => "FAILED",
                (None, None) => "DID NOT RUN",
            };
            let _ = writeln!(table, "{name:width$}  {result:11}  {}", case.function);
            if result != "ok" && left_out.is_none() {
                wrong.push(format!("`{}`: {} {result}", row.name, case.function));
            }
        }
    }
    let built = rows.iter().filter(|row| row.is_built).count();
    let _ = writeln!(table, "{built} rows, {} cases, {} rows not built", cases.len(), rows.len() - built);
    (table, wrong)
}

/// The rows of the table of section 4, and the keys of the tables of section 5.
fn rows(contract: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut prefix = "";
    let mut table = Table::Other;
    for line in contract.lines() {
        if line.contains("`[[route]]`") && line.starts_with("What") {
            prefix = "route.";
        }
        let Some(cells) = line.strip_prefix('|').filter(|cells| !cells.starts_with("--")) else {
            table = if line.starts_with('|') { table } else { Table::Other };
            continue;
        };
        let (first, rest) = cells.split_once('|').unwrap_or((cells, ""));
        match (first.trim(), table) {
            ("case", _) => table = Table::Cases,
            ("key", _) => table = Table::Keys,
            (name, Table::Cases) => {
                let words: Vec<&str> =
                    name.split(|char: char| !char.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
                let is_built = !rest.trim_end().trim_end_matches('|').trim_end().ends_with(" †");
                rows.push(Row { name: words.join("-").to_lowercase(), is_built });
            }
            (names, Table::Keys) => {
                let pieces: Vec<&str> = names.split('`').collect();
                rows.extend(pieces.windows(2).skip(1).step_by(2).filter_map(|pair| match pair {
                    [name, after] => Some(Row { name: format!("{prefix}{name}"), is_built: !after.starts_with('†') }),
                    _ => None,
                }));
            }
            (_, Table::Other) => {}
        }
    }
    rows
}

/// Which table a line of the contract stands in.
#[derive(Clone, Copy)]
enum Table {
    Cases,
    Keys,
    Other,
}

/// The cases of a file of tests; a line that stands above no test is wrong.
fn cases(text: &Text, wrong: &mut Vec<String>) -> Vec<Case> {
    let path = text.path.strip_prefix(TESTS).unwrap_or(&text.path);
    let (binary, module) = match path.split_once('/') {
        Some((binary, file)) => (binary, file.strip_suffix(".rs").filter(|stem| *stem != "main")),
        None => (path.strip_suffix(".rs").unwrap_or(path), None),
    };
    let mut cases = Vec::new();
    let mut said: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (at, line) in text.text.lines().enumerate() {
        let line = line.trim();
        if let Some(rows) = line.strip_prefix(SAYS) {
            said.insert(at + 1, rows.split(',').map(|row| row.trim().to_owned()).collect());
        } else if let Some((_, rest)) = line.split_once("fn ")
            && let Some((first, _)) = said.first_key_value()
        {
            let function = rest.split(['(', '<']).next().unwrap_or_default().to_owned();
            let at = format!("{}:{first}", text.path);
            let rows = std::mem::take(&mut said).into_values().flatten().collect();
            let module = module.map(str::to_owned);
            cases.push(Case { rows, binary: format!("{PACKAGE}::{binary}"), module, function, at });
        }
    }
    wrong.extend(said.keys().map(|at| format!("{}:{at}: stands above no test", text.path)));
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "## 4\n| case | answer |\n|---|---|\n| first | the upstream's |\n| over quota | 429 † |\n\n\
                            ## 5\n| key | default |\n|---|---|\n| `listen.tls`† | none |\n| `admin.token` | x |\n\n\
                            What a `[[route]]` can say:\n\n| key | default |\n|---|---|\n| `lease`, `timeout` | |\n\n\
                            | metric | counts |\n|---|---|\n| `x` | y |\n";
    const CODE: &str = "// contract: first, route.lease\n// contract: route.timeout\n#[tokio::test]\nasync fn one() {\n}\n\
                        // contract: admin.token\n#[test]\nfn two() {}\n";

    fn tree(document: &str, code: &str) -> Vec<Text> {
        vec![Text::new(CONTRACT, document), Text::new("crates/server/tests/proxy/keys.rs", code)]
    }

    fn ended(lines: &[&str]) -> Vec<Ended> {
        lines.iter().filter_map(|line| Ended::read(line)).collect()
    }

    const BOTH: &[&str] = &[
        "        PASS [   0.123s] (  1/2) onceward-server::proxy keys::one",
        "        PASS [   0.123s] onceward-server::proxy keys::two",
    ];

    #[test]
    fn a_contract_that_is_shown_whole_is_printed_row_by_row() {
        let (table, wrong) = table(&tree(DOCUMENT, CODE), Store::Embedded, &ended(BOTH));
        assert_eq!(wrong, [""; 0]);
        for line in ["first          ok           one", "over-quota     not built", "listen.tls     not built"] {
            assert!(table.lines().any(|found| found == line), "{line} not in\n{table}");
        }
        assert!(table.ends_with("4 rows, 2 cases, 2 rows not built\n"), "{table}");
    }

    #[test]
    fn rows_without_a_case_and_cases_that_do_not_hold_are_told() {
        let told =
            |document: &str, code: &str, lines: &[&str]| table(&tree(document, code), Store::Embedded, &ended(lines)).1;
        let [no_case] = &told(DOCUMENT, &CODE.replace(", route.lease", ""), BOTH)[..] else { panic!() };
        assert!(no_case.contains("`route.lease` has no case"), "{no_case}");
        assert_eq!(told(DOCUMENT, &CODE.replace("first,", "frist,"), BOTH).len(), 2, "no such row, and a row without");
        let failed = "        FAIL [   0.123s] onceward-server::proxy keys::two";
        assert_eq!(told(DOCUMENT, CODE, &[BOTH[0], failed]), ["`admin.token`: two FAILED"]);
        assert_eq!(told(DOCUMENT, CODE, &[BOTH[0]]), ["`admin.token`: two DID NOT RUN"]);
        let elsewhere = "        PASS [   0.123s] onceward-server::transport keys::two";
        assert_eq!(told(DOCUMENT, CODE, &[BOTH[0], elsewhere]).len(), 1, "of another binary");
        let three = "        PASS [   0.123s] onceward-server::proxy keys::three";
        let marked = format!("{CODE}// contract: over-quota\nfn three() {{}}\n");
        assert_eq!(told(DOCUMENT, &marked, &[BOTH[0], BOTH[1], three]).len(), 1, "built, it seems");
        assert_eq!(told(DOCUMENT, &format!("{CODE}// contract: first\n"), BOTH).len(), 1, "stands above no test");
        assert!(!told("", CODE, BOTH).is_empty());
    }

    #[test]
    fn lines_of_both_runners_are_read_and_no_others() {
        assert_eq!(ended(&["test keys::one ... ok", "test keys::two ... FAILED"]).len(), 2);
        assert_eq!(
            ended(&["    test keys::one ... ok", "        SLOW [> 60.000s] onceward-server::proxy keys::one", "", "x"]),
            []
        );
    }
}
