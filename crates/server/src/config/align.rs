//! The inequalities between a route's times, and their arithmetic.

use core::time::Duration;

use super::{
    Config,
    problem::Problems,
    read_route,
    route::{DEFAULT_ROUTE, RouteConfig},
    tree::Node,
    units::spell_duration,
};

/// One inequality of one route, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inequality {
    /// The names in it, in the order of their weight for a message.
    keys: &'static [&'static str],
    /// What must be the larger, or equal.
    pub large: &'static str,
    /// Its value.
    pub large_value: Duration,
    /// What must be the smaller, as a formula.
    pub small: &'static str,
    /// The formula with its numbers.
    pub arithmetic: String,
    /// What it comes to.
    pub small_value: Duration,
    /// What it protects from.
    why: &'static str,
}

impl Inequality {
    /// Whether the route meets it.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.large_value >= self.small_value
    }

    /// `retention = 24h ≥ 2 × client_retries = 2 × 20m = 40m`, with `<` where it does not hold.
    #[must_use]
    pub fn formula(&self) -> String {
        self.sentence(if self.holds() { "≥" } else { "<" })
    }

    fn sentence(&self, relation: &str) -> String {
        let (large, small) = (spell_duration(self.large_value), spell_duration(self.small_value));
        let sum = if self.arithmetic == small { String::new() } else { format!(" = {small}") };
        format!("{} = {large} {relation} {} = {}{sum}", self.large, self.small, self.arithmetic)
    }

    fn message(&self, whose: &str) -> String {
        let others: Vec<&str> = self.keys.iter().filter(|key| **key != self.large).copied().collect();
        format!(
            "{whose}: {}: {}; raise {} to {} or more, or lower {}",
            self.sentence("is less than"),
            self.why,
            self.large,
            spell_duration(self.small_value),
            others.join(" or "),
        )
    }
}

/// The five that every route meets.
pub(super) fn inequalities(route: &RouteConfig) -> [Inequality; 5] {
    let spell = spell_duration;
    [
        Inequality {
            keys: &["retention", "client_retries"],
            large: "retention",
            large_value: route.retention,
            small: "2 × client_retries",
            arithmetic: format!("2 × {}", spell(route.client_retries)),
            small_value: route.client_retries.saturating_mul(2),
            why: "a client that still tries would run a second time",
        },
        Inequality {
            keys: &["retention", "execution_max", "lease"],
            large: "retention",
            large_value: route.retention,
            small: "execution_max + lease",
            arithmetic: format!("{} + {}", spell(route.execution_max), spell(route.lease)),
            small_value: route.execution_max.saturating_add(route.lease),
            why: "a key could be forgotten while its request runs",
        },
        Inequality {
            keys: &["timeout", "in_flight.wait"],
            large: "timeout",
            large_value: route.timeout,
            small: "in_flight.wait",
            arithmetic: spell(route.in_flight.wait),
            small_value: route.in_flight.wait,
            why: "a repetition would wait longer than the first one may take",
        },
        Inequality {
            keys: &["execution_max", "timeout"],
            large: "execution_max",
            large_value: route.execution_max,
            small: "timeout",
            arithmetic: spell(route.timeout),
            small_value: route.timeout,
            why: "the execution would end before its client is answered",
        },
        Inequality {
            keys: &["retention_body", "retention"],
            large: "retention",
            large_value: route.retention,
            small: "retention_body",
            arithmetic: spell(route.retention_body.unwrap_or(route.retention)),
            small_value: route.retention_body.unwrap_or(route.retention),
            why: "an answer's body would outlive its key",
        },
    ]
}

/// Refuses what is not aligned. `root` is the tree that `config` was read from.
pub(super) fn check(config: &Config, root: &Node, problems: &mut Problems<'_>) {
    let routes = config.routes.iter().chain([&config.default_route]);
    for (route, (table, at)) in routes.zip(read_route::layers(root)) {
        let is_default = route.name == DEFAULT_ROUTE;
        let whose = if is_default { "[defaults]".to_owned() } else { format!("[[route]] {:?}", route.name) };
        for inequality in inequalities(route).into_iter().filter(|inequality| !inequality.holds()) {
            let place = |own: bool| {
                inequality.keys.iter().find_map(|key| {
                    let (table, key) = match key.split_once('.') {
                        Some((outer, inner)) => (table.sub(outer), inner),
                        None => (table, *key),
                    };
                    if own { table.own_at(key) } else { table.at(key) }
                })
            };
            // A route that says none of the keys itself has the numbers of `[defaults]`, which is
            // told of them.
            match place(true) {
                Some(place) => problems.error(place, inequality.message(&whose)),
                None if is_default => problems.error(place(false).unwrap_or(at), inequality.message(&whose)),
                None => {}
            }
        }
    }
}
