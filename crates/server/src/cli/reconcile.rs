//! `onceward reconcile`: records held against the effects that upstreams wrote down.

use http::Method;
use serde_json::Value;

use super::{Failure, access::Access, args::ReconcileArgs};
use crate::admin::Look;

/// What each kind means, as it is printed.
const KINDS: [(&str, &str); 4] = [
    ("orphaned_claim", "no outcome and no effect: on_unknown decides, or `onceward keys resolve`"),
    ("effect_without_outcome", "it took effect and nobody recorded the answer: on_unknown = [\"effect\"] settles it"),
    ("outcome_without_effect", "answered with a 2xx, and nothing is there: never repaired, look into it"),
    ("stale_holder", "in flight, and overtaken where the effects are: it ends by itself"),
];

/// Looks, and prints what was found.
///
/// # Errors
/// Exit code 1 where something was found, 2 where it cannot be told.
pub(super) async fn run(args: &ReconcileArgs) -> Result<(), Failure> {
    let untold = |failure: Failure| Failure { code: 2, ..failure };
    let access = Access::open(&args.target).await.map_err(untold)?;
    let look = Look { route: args.route.clone(), examples: args.examples, repair: args.repair };
    let body = serde_json::to_value(look).unwrap_or_default();
    let report = access.call(Method::POST, "/reconcile", Some(&body)).await;
    access.close().await;
    let report = report.map_err(untold)?;
    if args.output.json {
        println!("{report}");
    } else {
        print(&report);
    }
    verdict(&report)
}

fn number(of: &Value, path: &str) -> u64 {
    of.pointer(path).and_then(Value::as_u64).unwrap_or_default()
}

fn items<'a>(of: &'a Value, path: &str) -> &'a [Value] {
    of.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(of: &'a Value, name: &str) -> &'a str {
    of.get(name).and_then(Value::as_str).unwrap_or("-")
}

fn verdict(report: &Value) -> Result<(), Failure> {
    let untold = items(report, "/untold");
    if !untold.is_empty() {
        let routes: Vec<String> =
            untold.iter().map(|one| format!("{}: {}", text(one, "route"), text(one, "why"))).collect();
        return Err(Failure::usage(format!("it cannot be told of {}", routes.join("; "))));
    }
    if items(report, "/routes").is_empty() && report.get("compensations").is_none_or(Value::is_null) {
        return Err(Failure::usage(
            "there is nothing to compare: no route says where its effects are; see `effect` in docs/configuration.md",
        ));
    }
    let kinds: u64 = KINDS.iter().map(|(kind, _)| number(report, &format!("/found/{kind}/count"))).sum();
    let waiting = number(report, "/compensations/stuck") + number(report, "/compensations/held");
    if kinds + waiting == 0 {
        return Ok(());
    }
    Err(Failure::not_well(format!("{} do not fit, {waiting} compensations wait for an operator", records(kinds))))
}

fn records(count: u64) -> String {
    if count == 1 { "1 record".into() } else { format!("{count} records") }
}

fn print(report: &Value) {
    let routes: Vec<&str> = items(report, "/routes").iter().filter_map(Value::as_str).collect();
    println!("{} compared on {}", records(number(report, "/records")), routes.join(", "));
    if report.get("repaired").is_some_and(Value::is_object) {
        let (settled, done) = (number(report, "/repaired/settled"), number(report, "/repaired/compensated"));
        println!("repaired: {} settled, {done} effects undone", records(settled));
    }
    for (kind, means) in KINDS {
        println!("{kind:<24}{:>6}  {means}", number(report, &format!("/found/{kind}/count")));
        for one in items(report, &format!("/found/{kind}/examples")) {
            println!("  {}  {}  {}", text(one, "record_id"), text(one, "route"), text(one, "state"));
        }
    }
    if report.get("compensations").is_some_and(Value::is_object) {
        for state in ["due", "stuck", "held"] {
            println!("compensations {state:<10}{:>6}", number(report, &format!("/compensations/{state}")));
        }
        for one in items(report, "/compensations/examples") {
            let (name, state, target) = (text(one, "name"), text(one, "state"), text(one, "target"));
            println!("  {}  {name}  {state}  {target}  {}", text(one, "record_id"), text(one, "last_error"));
        }
    }
}
