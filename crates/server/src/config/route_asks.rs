//! The tables of a route that ask somebody else: `auth`.

use core::time::Duration;

use super::{
    forms,
    read_route::Reader,
    route::{AuthConfig, Principal},
    tree::Value,
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
}
