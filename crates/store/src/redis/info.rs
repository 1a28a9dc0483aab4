//! What a server says of itself.

use redis::Value;

/// The text of INFO: lines of `name:value`.
#[derive(Clone, Debug, Default)]
pub(super) struct Info(String);

impl Info {
    pub(super) fn of(value: Value) -> Self {
        Self(match value {
            Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Value::VerbatimString { text, .. } | Value::SimpleString(text) => text,
            _ => String::new(),
        })
    }

    /// The value of a field; `""` where there is none.
    pub(super) fn field(&self, name: &str) -> &str {
        let value = |line: &'_ str| line.strip_prefix(name)?.strip_prefix(':').map(str::len);
        let line = self.0.lines().find(|line| value(line).is_some());
        line.and_then(|line| line.get(name.len() + 1..)).unwrap_or_default().trim()
    }

    pub(super) fn number(&self, name: &str) -> u64 {
        self.field(name).parse().unwrap_or_default()
    }

    /// Keys in the database, and those among them with an end, of `db0:keys=3,expires=1,avg_ttl=0`.
    pub(super) fn keys(&self, database: i64) -> u64 {
        let line = self.field(&format!("db{database}"));
        let keys = line.split(',').find_map(|pair| pair.strip_prefix("keys="));
        keys.and_then(|keys| keys.parse().ok()).unwrap_or_default()
    }

    /// Which history of writes it is: another after each restart and failover.
    pub(super) fn history(&self) -> Option<&str> {
        Some(self.field("master_replid")).filter(|id| id.len() == 40)
    }

    pub(super) fn is_primary(&self) -> bool {
        self.field("role") == "master"
    }

    /// Major and minor version of Redis that it is compatible with.
    pub(super) fn version(&self) -> (u32, u32) {
        let mut parts = self.field("redis_version").split('.').map(|part| part.parse().unwrap_or_default());
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "# Server\r\nredis_version:7.0.15\r\n# Replication\r\nrole:master\r\nmaster_replid:8371445ec4\r\n\
            used_memory:1048576\r\nused_memory_human:1M\r\ndb0:keys=12,expires=3,avg_ttl=5\r\n";
        let info = Info::of(Value::BulkString(text.into()));
        assert_eq!((info.version(), info.is_primary(), info.history()), ((7, 0), true, None));
        assert_eq!((info.number("used_memory"), info.field("used_memory_human")), (1_048_576, "1M"));
        assert_eq!((info.keys(0), info.keys(1), info.number("evicted_keys")), (12, 0, 0));
    }
}
