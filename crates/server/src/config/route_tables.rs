//! The tables inside a route: `key`, `scope`, `fingerprint`, `record`, and the list `on_unknown`.

use core::time::Duration;

use http::HeaderName;
use onceward_core::policy::{Predicate, Preset, Recording, Step};

use crate::proxy::ClientAuth;

use super::{
    Listen,
    forms::{self, PrincipalWord},
    read::Layers,
    read_route::Reader,
    route::{
        Field, FingerprintBody, FingerprintConfig, Hash, KeyConfig, KeySource, Missing, Principal, PrincipalPart,
        ProbeConfig, ScopeConfig, ScopePart,
    },
    schema,
    tree::{Node, Value},
    units,
};

impl Reader<'_, '_, '_> {
    pub(super) fn key(&mut self) -> KeyConfig {
        let table = self.table.sub("key");
        let mut from = table.list("from", forms::key_source);
        if from.is_empty() {
            if table.node("from").is_some_and(|node| matches!(&node.value, Value::List(items) if items.is_empty())) {
                let why = format!(r#""from" in "key" of {} is empty: leave it out for Idempotency-Key"#, self.whose);
                self.wrong(table, "from", why);
            }
            from = ["idempotency-key", "x-idempotency-key"]
                .map(|name| KeySource::Header(HeaderName::from_static(name)))
                .to_vec();
        }
        let missing = table.choice(
            "missing",
            &[("optional", Missing::Optional), ("required", Missing::Required), ("derive", Missing::Derive)],
            Missing::Optional,
        );
        if missing != Missing::Derive && table.own("derived_retention").is_some() {
            let why = format!(r#"{}: "derived_retention" counts only with missing = "derive""#, self.whose);
            self.warn(table, "derived_retention", why);
        }
        KeyConfig {
            from,
            missing,
            strict: table.bool("strict"),
            min_length: table.integer("min_length", 1),
            derived_retention: table.duration("derived_retention", Duration::from_secs(5 * 60)),
            docs: table.form("docs", forms::docs_url),
        }
    }

    pub(super) fn scope(&mut self, listen: &Listen) -> ScopeConfig {
        let table = self.table.sub("scope");
        let fixed = || ScopePart::Fixed("default".to_owned());
        let tenant = table.form("tenant", forms::scope_part).unwrap_or_else(fixed);
        let env = table.form("env", forms::scope_part).unwrap_or_else(fixed);
        let mut words = table.list("principal", forms::principal);
        if let Some(one) = table.form("principal", forms::principal) {
            words.push(one);
        } else if table.node("principal").is_some_and(|node| matches!(&node.value, Value::List(i) if i.is_empty())) {
            let why =
                format!(r#""principal" in "scope" of {} is empty: write "none" if all callers are one"#, self.whose);
            self.wrong(table, "principal", why);
        }
        let alone = words.iter().any(|word| matches!(word, PrincipalWord::Auto | PrincipalWord::None));
        if alone && words.len() > 1 {
            let why = format!(r#""principal" in "scope" of {}: "auto" and "none" stand alone"#, self.whose);
            self.wrong(table, "principal", why);
        }
        let mut parts = Vec::new();
        let mut principal = Principal::Auto;
        for word in words {
            match word {
                PrincipalWord::Auto => {}
                PrincipalWord::None => principal = Principal::None,
                PrincipalWord::Part(part) => parts.push(part),
            }
        }
        if !parts.is_empty() {
            principal = Principal::Parts(parts);
        }
        let asks_clients = listen.tls.as_ref().is_some_and(|tls| tls.client_auth != ClientAuth::Off);
        if matches!(&principal, Principal::Parts(parts) if parts.contains(&PrincipalPart::Mtls)) && !asks_clients {
            let why = format!(
                r#"{}: "mtls" is the subject of a client's certificate, and no client is asked for one: set "client_ca" and "client_auth" of "tls" in [listen], else every keyed request is 400 no-principal"#,
                self.whose
            );
            self.wrong(table, "principal", why);
        }
        if listen.trusted.is_empty() {
            let credentials = ["authorization", "x-api-key", "api-key"];
            let by_hop = match &principal {
                Principal::Parts(parts) => parts
                    .iter()
                    .any(|part| matches!(part, PrincipalPart::Header(name) if !credentials.contains(&name.as_str()))),
                Principal::Auto | Principal::None => false,
            };
            for (key, says) in [
                ("tenant", matches!(tenant, ScopePart::Header(_))),
                ("env", matches!(env, ScopePart::Header(_))),
                ("principal", by_hop),
            ] {
                if says {
                    let why = format!(
                        r#"{}: "{key}" is read from a header, which counts only from peers in "trusted" of [listen], and that is empty: every keyed request will be 400 untrusted-header"#,
                        self.whose
                    );
                    self.warn(table, key, why);
                }
            }
        }
        ScopeConfig { tenant, env, principal }
    }

    pub(super) fn fingerprint(&mut self, missing: Missing) -> FingerprintConfig {
        let table = self.table.sub("fingerprint");
        let mut headers = table.list("headers", forms::header);
        headers.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        headers.dedup();
        let config = FingerprintConfig {
            hash: table.choice("hash", &[("blake3", Hash::Blake3), ("sha256", Hash::Sha256)], Hash::Blake3),
            body: table.choice(
                "body",
                &[
                    ("canonical", FingerprintBody::Canonical),
                    ("raw", FingerprintBody::Raw),
                    ("none", FingerprintBody::None),
                ],
                FingerprintBody::Canonical,
            ),
            strip: table.list("strip", forms::field),
            keep: table.list("keep", forms::field),
            require: table.list("require", forms::field),
            unordered: table.list("unordered", forms::pointer),
            headers,
            sort_query: table.bool("sort_query"),
            decode: table.bool("decode"),
            fields: table.integer("fields", 8),
        };
        if !config.strip.is_empty() && !config.keep.is_empty() {
            let key = if table.own("strip").is_some() { "strip" } else { "keep" };
            let why = format!(
                r#"{}: "strip" and "keep" of "fingerprint" exclude each other: with "keep" nothing else counts anyway; set one to []"#,
                self.whose
            );
            self.wrong(table, key, why);
        }
        let of_body = |field: &Field| matches!(field, Field::Pointer(_) | Field::Form(_));
        if config.body != FingerprintBody::Canonical {
            for (key, says) in [
                ("strip", config.strip.iter().any(of_body)),
                ("keep", config.keep.iter().any(of_body)),
                ("unordered", !config.unordered.is_empty()),
            ] {
                if says {
                    let why = format!(
                        r#"{}: {key:?} of "fingerprint" looks into the body, which body = {:?} does not"#,
                        self.whose,
                        table.text("body").unwrap_or_default()
                    );
                    self.wrong(table, key, why);
                }
            }
        }
        if config.decode && config.body != FingerprintBody::Canonical {
            let why = format!(
                r#"{}: "decode" of "fingerprint" is for the canonical form, which body = {:?} does not make"#,
                self.whose,
                table.text("body").unwrap_or_default()
            );
            self.wrong(table, "decode", why);
        }
        if config.body == FingerprintBody::None && missing == Missing::Derive {
            let why = format!(
                r#"{}: missing = "derive" with body = "none" would make one key of all requests to a path"#,
                self.whose
            );
            self.wrong(table, "body", why);
        }
        config
    }

    pub(super) fn recording(&mut self) -> Recording {
        let table = self.table.sub("record");
        let statuses = |key: &str| -> Vec<u16> {
            let items = table.node(key).map_or(&[][..], Node::items);
            items
                .iter()
                .take(schema::STATUSES_MAX)
                .filter_map(|item| match item.value {
                    Value::Integer(Some(status)) => u16::try_from(status).ok(),
                    _ => None,
                })
                .collect()
        };
        let lists = ["record", "release", "unknown"].map(|key| (key, statuses(key)));
        for (index, (key, list)) in lists.iter().enumerate() {
            for (other, earlier) in lists.iter().take(index) {
                if let Some(status) = list.iter().find(|status| earlier.contains(status)) {
                    let why = format!(r#"{}: {status} is both in {other:?} and in {key:?} of "record""#, self.whose);
                    self.wrong(table, key, why);
                }
            }
        }
        let [(_, record), (_, release), (_, unknown)] = lists;
        let mut release_when = Vec::new();
        for item in table.node("release_when").map_or(&[][..], Node::items) {
            let table = Layers::new(Some(item), None);
            for key in ["status", "header"] {
                if table.node(key).is_none() && matches!(item.value, Value::Table(_)) {
                    let why = format!(r#"an entry of "release_when" in "record" of {} lacks {key:?}"#, self.whose);
                    self.wrong_at(&item.at, why);
                }
            }
            release_when.push(Predicate {
                status: table.integer("status", 503),
                header: table.form("header", forms::header).map_or_else(String::new, |name| name.to_string()),
                value: table.text("value").map(str::to_owned),
            });
        }
        let preset = table.choice(
            "preset",
            &[
                ("safe", Preset::Safe),
                ("rollback", Preset::Rollback),
                ("success", Preset::Success),
                ("stripe", Preset::Stripe),
            ],
            Preset::Safe,
        );
        Recording { preset, record, release, unknown, release_when }
    }

    pub(super) fn on_unknown(
        &mut self,
        retry_max: u32,
        unknown_max: Duration,
        probe: Option<&ProbeConfig>,
    ) -> Vec<Step> {
        let table = self.table;
        let Some(items) = table.node("on_unknown").map(Node::items) else { return vec![Step::Hold] };
        let mut steps = Vec::new();
        for item in items {
            let step = match item.text() {
                Some("hold") => Some(Step::Hold),
                Some("retry") => Some(Step::Retry),
                Some("fail") => Some(Step::Fail),
                Some("probe") => self.probe_step(item, probe),
                Some("effect") => Some(Step::Effect),
                Some(_) => None,
                None => {
                    let span = Layers::new(Some(item), None);
                    if span.node("hold").is_none() && matches!(item.value, Value::Table(_)) {
                        let why = format!(r#"a table in "on_unknown" of {} must be {{ hold = "72h" }}"#, self.whose);
                        self.wrong_at(&item.at, why);
                    }
                    span.form("hold", units::duration).map(Step::HoldFor)
                }
            };
            if let (Some(_), Some(last @ (Step::Hold | Step::Fail))) = (step, steps.last()) {
                let last = if *last == Step::Hold { "hold" } else { "fail" };
                let why =
                    format!(r#""on_unknown" of {}: nothing comes after {last:?}, which ends the list"#, self.whose);
                self.wrong_at(&item.at, why);
            }
            if let Some(Step::HoldFor(span)) = step
                && span >= unknown_max
            {
                let (span, max) = (units::spell_duration(span), units::spell_duration(unknown_max));
                let why = format!(
                    "{}: the hold of {span} is not less than unknown_max ({max}), so what follows is never reached",
                    self.whose
                );
                self.warn_at(&item.at, why);
            }
            let asks = match step {
                Some(Step::Probe { .. }) => steps.iter().any(|step| matches!(step, Step::Probe { .. })),
                Some(Step::Effect) => steps.contains(&Step::Effect),
                _ => false,
            };
            if asks {
                let why =
                    format!(r#""on_unknown" of {}: {:?} stands twice"#, self.whose, item.text().unwrap_or_default());
                self.wrong_at(&item.at, why);
            }
            if step == Some(Step::Retry) && retry_max == 0 {
                let why = format!(r#"{}: "retry" in "on_unknown" never runs with retry_max = 0"#, self.whose);
                self.wrong_at(&item.at, why);
            }
            steps.extend(step);
        }
        if steps.is_empty() {
            if items.is_empty() {
                let why = format!(r#""on_unknown" in {} is empty: write ["hold"]"#, self.whose);
                self.wrong(table, "on_unknown", why);
            }
            steps.push(Step::Hold);
        }
        steps
    }
}
