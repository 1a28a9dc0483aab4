//! The tables of a route that ask somebody else: `auth`, `probe` and `effect`.

use core::time::Duration;

use http::HeaderName;
use onceward::{ProbeUrl, store::effects::Rows};
use onceward_core::policy::Step;

use super::{
    forms,
    problem::Origin,
    read::{self, Layers},
    read_route::Reader,
    route::{AuthConfig, EffectConfig, Principal, ProbeConfig, ReplayBody},
    secret::{self, Secret},
    tree::{Node, Value},
    units::spell_duration,
};

impl Reader<'_, '_, '_> {
    pub(super) fn auth(&mut self, principal: &Principal) -> Option<AuthConfig> {
        self.table.node("auth").filter(|node| matches!(node.value, Value::Table(_)))?;
        let table = self.table.sub("auth");
        if table.node("url").is_none() {
            let why = format!(r#""auth" of {} lacks "url""#, self.whose);
            self.wrong(self.table, "auth", why);
        }
        if table.text("url") == Some("none") {
            return None;
        }
        let principal_header = table.form("principal_header", forms::header);
        if principal_header.is_some() && *principal != Principal::Auto {
            let why = format!(
                r#"{}: both "principal_header" of "auth" and "principal" of "scope" say who the caller is; leave one out"#,
                self.whose
            );
            self.wrong(table, "principal_header", why);
        }
        Some(AuthConfig {
            url: table.form("url", forms::auth_url).flatten()?,
            headers: table.list("headers", forms::header),
            cache: table.duration("cache", Duration::from_secs(5)),
            timeout: table.duration("timeout", Duration::from_secs(5)),
            principal_header,
        })
    }

    pub(super) fn probe(&mut self, timeout: Duration) -> Option<ProbeConfig> {
        self.table.node("probe").filter(|node| matches!(node.value, Value::Table(_)))?;
        let table = self.table.sub("probe");
        if table.node("url").is_none() {
            let why = format!(r#""probe" of {} lacks "url""#, self.whose);
            self.wrong(self.table, "probe", why);
        }
        let executed = self.statuses(table, "executed");
        let not_executed = self.statuses(table, "not_executed");
        if executed.is_empty() && not_executed.is_empty() {
            let why = format!(
                r#"{}: "probe" has no status in "executed" and none in "not_executed", so no answer says anything; write executed = [200], not_executed = [404]"#,
                self.whose
            );
            self.wrong(self.table, "probe", why);
        }
        if let Some(both) = executed.iter().find(|status| not_executed.contains(status)) {
            let why = format!(r#"{}: {both} is both in "executed" and in "not_executed" of "probe""#, self.whose);
            self.wrong(table, "not_executed", why);
        }
        let quiesce = table.duration("quiesce", timeout + Duration::from_secs(5));
        if quiesce < timeout && !not_executed.is_empty() {
            let (quiesce, timeout) = (spell_duration(quiesce), spell_duration(timeout));
            let why = format!(
                r#"{}: the "quiesce" of "probe" ({quiesce}) is less than timeout ({timeout}): the upstream may still be working when it is asked, and what was not done yet would run twice"#,
                self.whose
            );
            self.warn(table, "quiesce", why);
        }
        let is_asked =
            self.table.node("on_unknown").map_or(&[][..], Node::items).iter().any(|item| item.text() == Some("probe"));
        if !is_asked && self.table.own("probe").is_some() {
            let why = format!(r#"{}: "probe" is never asked: put "probe" into "on_unknown""#, self.whose);
            self.warn(self.table, "probe", why);
        }
        let headers = self.sent_along(table);
        Some(ProbeConfig {
            url: table.form("url", |text| ProbeUrl::parse(text).map_err(|error| error.to_string()))?,
            executed,
            not_executed,
            quiesce,
            timeout: table.duration("timeout", Duration::from_secs(5)),
            replay: table.choice(
                "replay",
                &[("recorded", ReplayBody::Recorded), ("ack", ReplayBody::Ack)],
                ReplayBody::Recorded,
            ),
            headers,
        })
    }

    /// The step `probe` of `on_unknown`.
    pub(super) fn probe_step(&mut self, item: &Node, probe: Option<&ProbeConfig>) -> Option<Step> {
        let Some(probe) = probe else {
            // One that is wrong has been told by itself.
            if self.table.node("probe").is_none() {
                let why = format!(
                    r#""on_unknown" of {} says "probe", and "probe" does not say who is asked: add probe = {{ url = "http://127.0.0.1:9000/by-record/{{record}}", executed = [200], not_executed = [404] }}"#,
                    self.whose
                );
                self.wrong_at(&item.at, why);
            }
            return None;
        };
        Some(Step::Probe { quiesce: probe.quiesce, unattended: !probe.url.needs_key() })
    }

    /// Where the step `effect` looks; `None` where it is not in `on_unknown`.
    pub(super) fn effect(&mut self) -> Option<EffectConfig> {
        let (table, whose) = (self.table.sub("effect"), format!(r#""effect" of {}"#, self.whose));
        let items = self.table.node("on_unknown").map_or(&[][..], Node::items);
        let said = self.table.node("effect").filter(|node| matches!(node.value, Value::Table(_)));
        let step = items.iter().find(|item| item.text() == Some("effect"));
        let at = step.or(said).map(|node| &node.at)?;
        let has_database = table.node("url").is_some() || self.store.postgres.is_some();
        if step.is_none() && self.table.own("effect").is_some() {
            let why = format!(
                r#"{whose} is looked into by `onceward reconcile` alone, which settles nothing: put "effect" into "on_unknown""#
            );
            self.warn(self.table, "effect", why);
        }
        if step.is_none() && !has_database {
            return None;
        }
        if !has_database {
            let why = format!(
                r#""on_unknown" of {} says "effect", and nothing says in which database it is: add effect = {{ url = "env:DATABASE_URL" }}"#,
                self.whose
            );
            self.wrong_at(at, why);
        }
        let [url, password] = ["url", "password"].map(|key| {
            let value = secret::followed(table.text(key)?, self.inputs);
            let at = table.at(key).unwrap_or(at);
            value.map(Secret::new).map_err(|why| self.unfollowed(at, &format!(r#"{key:?} of "effect""#), why)).ok()
        });
        if let Some(why) = url.as_ref().and_then(read::no_address) {
            self.wrong(table, "url", format!(r#""url" in {whose}: {why}"#));
        }
        if url.is_none() {
            for key in ["password", "tls", "ca"].into_iter().filter(|key| table.own(key).is_some()) {
                self.warn(table, key, format!(r#"{whose}: {key:?} counts only with a "url" of its own"#));
            }
        }
        let (rows, id_column) = (table.form("table", forms::table), table.form("id_column", forms::column));
        if rows.is_some() != id_column.is_some() {
            let (there, missing) = if rows.is_some() { ("table", "id_column") } else { ("id_column", "table") };
            self.wrong(table, there, format!("{whose}: {there:?} needs {missing:?} beside it"));
        }
        let rows = rows.zip(id_column).map(|(table, id_column)| Rows { table, id_column });
        Some(EffectConfig {
            rows,
            database: url.map(|url| read::database(table, url, password)),
            name: table.form("name", forms::effect_name).unwrap_or_else(|| "done".into()),
            timeout: table.duration("timeout", Duration::from_secs(5)),
        })
    }

    /// A secret that could not be followed from here.
    fn unfollowed(&mut self, at: &Origin, what: &str, unfollowed: secret::Unfollowed) {
        let why = format!("{what} of {}: {}", self.whose, unfollowed.why);
        if unfollowed.may_be_elsewhere {
            self.warn_at(at, why);
        } else {
            self.wrong_at(at, why);
        }
    }

    /// Statuses that can say something.
    fn statuses(&mut self, table: Layers<'_>, key: &str) -> Vec<u16> {
        let mut statuses = Vec::new();
        for item in table.node(key).map_or(&[][..], Node::items) {
            let Value::Integer(Some(status)) = item.value else { continue };
            let Ok(status) = u16::try_from(status) else { continue };
            let why = match status {
                300..=399 => "a redirect, which is not followed and settles nothing",
                500..=599 => "an error of a server, which proves nothing",
                _ => {
                    statuses.push(status);
                    continue;
                }
            };
            let why = format!(r#"{status} in {key:?} of "probe" of {} is {why}"#, self.whose);
            self.wrong_at(&item.at, why);
        }
        statuses
    }

    /// Headers with values that no message shows.
    fn sent_along(&mut self, table: Layers<'_>) -> Vec<(HeaderName, Secret)> {
        let mut headers = Vec::new();
        for item in table.node("headers").map_or(&[][..], Node::items) {
            let entry = Layers::new(Some(item), None);
            for key in ["name", "value"] {
                if entry.node(key).is_none() && matches!(item.value, Value::Table(_)) {
                    let why = format!(r#"an entry of "headers" in "probe" of {} lacks {key:?}"#, self.whose);
                    self.wrong_at(&item.at, why);
                }
            }
            let (Some(name), Some(text)) = (entry.form("name", forms::header), entry.text("value")) else { continue };
            let at = entry.at("value").unwrap_or(&item.at);
            match secret::followed(text, self.inputs) {
                Ok(value) if http::HeaderValue::from_str(&value).is_ok() => headers.push((name, Secret::new(value))),
                Ok(_) => {
                    self.wrong_at(at, format!("the value of {name} in \"probe\" of {} is none of a header", self.whose))
                }
                Err(unfollowed) => self.unfollowed(at, &format!("the value of {name} in \"probe\""), unfollowed),
            }
        }
        headers
    }
}
