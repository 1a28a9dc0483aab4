//! `config check`, `config timeouts` and `config example`.

use std::{fmt::Write as _, path::Path};

use serde_json::{Value, json};

use super::{
    Config, ConfigError, Environment, Flags, Inputs, Outcome, Place, Problem, Secrets, align, align::Inequality,
    problem::Source, read_file, route::RouteConfig, units::spell_duration,
};

/// A commented file with every key of this version, at its default. It passes [`check`].
pub const EXAMPLE: &str = include_str!("example.toml");

/// What `config check` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The file as it was named.
    pub file: String,
    /// What refuses a start, in the order of the file.
    pub errors: Vec<Problem>,
    /// What is worth a look.
    pub warnings: Vec<Problem>,
    /// The routes that the file has, besides the route `default`.
    pub routes: usize,
}

impl Report {
    /// Whether a process would start with it. Otherwise the exit code is 1.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.errors.is_empty()
    }

    /// One problem a line, and a last line that sums up.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for error in &self.errors {
            let _ = writeln!(out, "{error}");
        }
        for Problem { place, message } in &self.warnings {
            let _ = writeln!(out, "{place}: warning: {message}");
        }
        let _ = match self.errors.len() {
            0 => writeln!(out, "{}: good, {}", self.file, counted(self.routes, "route")),
            errors => writeln!(out, "{}: {}", self.file, counted(errors, "problem")),
        };
        out
    }

    /// `{file, ok, routes, errors: [{file?, line?, column?, variable?, message}], warnings: […]}`
    #[must_use]
    pub fn json(&self) -> Value {
        let problems = |problems: &[Problem]| problems.iter().map(problem_json).collect::<Vec<_>>();
        json!({
            "file": self.file,
            "ok": self.ok(),
            "routes": self.routes,
            "errors": problems(&self.errors),
            "warnings": problems(&self.warnings),
        })
    }
}

fn problem_json(problem: &Problem) -> Value {
    let message = &problem.message;
    match &problem.place {
        Place::Line { file, line, column } => {
            json!({ "file": file, "line": line, "column": column, "message": message })
        }
        Place::File(file) => json!({ "file": file, "message": message }),
        Place::Variable(name) => json!({ "variable": name, "message": message }),
        Place::Flag(name) => json!({ "flag": name, "message": message }),
        Place::CommandLine => json!({ "message": message }),
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Checks a file as a start would, with the environment's overrides; but a secret that the file
/// only points to, and that is not there, is a warning: it may be elsewhere.
///
/// # Errors
///
/// The file cannot be read. What is wrong in it is in the report.
pub fn check(file: &Path, environment: &Environment) -> Result<Report, ConfigError> {
    let name = file.display().to_string();
    let outcome = read(file, environment)?;
    Ok(report(name, outcome))
}

/// [`check`] for `text` in a file named `name`.
#[must_use]
pub fn check_text(name: &str, text: &str, environment: &Environment) -> Report {
    report(name.to_owned(), read_text(name, text, environment))
}

fn report(file: String, outcome: Outcome) -> Report {
    let routes = outcome.config.as_ref().map_or(0, |config| config.routes.len());
    Report { file, errors: outcome.errors, warnings: outcome.warnings, routes }
}

fn read(file: &Path, environment: &Environment) -> Result<Outcome, ConfigError> {
    Ok(match read_file(file)? {
        Ok(text) => read_text(&file.display().to_string(), &text, environment),
        Err(problem) => Outcome { config: None, errors: vec![problem], warnings: Vec::new() },
    })
}

fn read_text(name: &str, text: &str, environment: &Environment) -> Outcome {
    let flags = Flags::default();
    let inputs = Inputs { flags: &flags, environment, secrets: Secrets::Absent };
    Config::read(Some(&Source { name, text }), &inputs)
}

/// The times of each route and whether they fit each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// In the order of the file, the route `default` last.
    pub routes: Vec<RouteTimeouts>,
}

/// The times of one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTimeouts {
    /// Its name.
    pub route: String,
    /// Name and value of each time, from the client's horizon to the retention.
    pub times: Vec<(&'static str, core::time::Duration)>,
    /// What they must meet.
    pub inequalities: Vec<Inequality>,
}

/// The table of `config timeouts`. A file whose only fault is that its times do not fit is shown
/// too, so that one sees which.
///
/// # Errors
///
/// The file cannot be read, or there is nothing to show.
pub fn timeouts(file: &Path, environment: &Environment) -> Result<Timeouts, ConfigError> {
    let outcome = read(file, environment)?;
    let Some(config) = outcome.config else { return Err(ConfigError::Invalid { problems: outcome.errors }) };
    let routes: Vec<RouteTimeouts> =
        config.routes.iter().chain([&config.default_route]).map(RouteTimeouts::of).collect();
    let table = Timeouts { routes };
    if outcome.errors.is_empty() || !table.ok() {
        Ok(table)
    } else {
        Err(ConfigError::Invalid { problems: outcome.errors })
    }
}

impl RouteTimeouts {
    fn of(route: &RouteConfig) -> Self {
        Self {
            route: route.name.clone(),
            times: vec![
                ("client_retries", route.client_retries),
                ("in_flight.wait", route.in_flight.wait),
                ("timeout", route.timeout),
                ("execution_max", route.execution_max),
                ("lease", route.lease),
                ("retention", route.retention),
            ],
            inequalities: align::inequalities(route).to_vec(),
        }
    }
}

impl Timeouts {
    /// Whether all fit. Otherwise the exit code is 1.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.routes.iter().flat_map(|route| &route.inequalities).all(Inequality::holds)
    }

    /// A table, and below it each route's inequalities in numbers.
    #[must_use]
    pub fn text(&self) -> String {
        let width = self.routes.iter().map(|route| route.route.len()).max().unwrap_or(0).max("route".len());
        let mut out = format!("{:width$}", "route");
        for (name, _) in self.routes.first().map_or(&[][..], |route| &route.times) {
            let _ = write!(out, "  {name:>14}");
        }
        out.push('\n');
        for route in &self.routes {
            let _ = write!(out, "{:width$}", route.route);
            for (_, time) in &route.times {
                let _ = write!(out, "  {:>14}", spell_duration(*time));
            }
            out.push('\n');
        }
        for route in &self.routes {
            let _ = writeln!(out, "\n{}", route.route);
            for inequality in &route.inequalities {
                let mark = if inequality.holds() { "holds        " } else { "DOES NOT HOLD" };
                let _ = writeln!(out, "  {mark}  {}", inequality.formula());
            }
        }
        out
    }

    /// `{ok, routes: [{route, times_ms: {…}, inequalities: [{formula, holds}]}]}`
    #[must_use]
    pub fn json(&self) -> Value {
        let routes: Vec<Value> = self
            .routes
            .iter()
            .map(|route| {
                let times: serde_json::Map<String, Value> = route
                    .times
                    .iter()
                    .map(|(name, time)| {
                        ((*name).to_owned(), json!(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
                    })
                    .collect();
                let inequalities: Vec<Value> = route
                    .inequalities
                    .iter()
                    .map(|inequality| json!({ "formula": inequality.formula(), "holds": inequality.holds() }))
                    .collect();
                json!({ "route": route.route, "times_ms": times, "inequalities": inequalities })
            })
            .collect();
        json!({ "ok": self.ok(), "routes": routes })
    }
}
