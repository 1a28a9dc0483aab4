//! The schema, the example and the documents say the same of every key: names, defaults, and what is not built.
#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use onceward_server::config::{Environment, NOT_AVAILABLE, json_schema, report};
    use serde_json::{Value, json};

    fn document(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Keys and their defaults, as the schema has them; `route.…` stands for `[defaults]` too.
    fn keys() -> BTreeMap<String, Option<Value>> {
        let mut keys = BTreeMap::new();
        let schema = json_schema();
        for (name, property) in schema["properties"].as_object().unwrap() {
            if name != "defaults" {
                walk(property, name, &mut keys);
            }
        }
        keys
    }

    fn walk(property: &Value, path: &str, keys: &mut BTreeMap<String, Option<Value>>) {
        let missing = property.get("not") == Some(&json!({}));
        let members = property.get("properties").or_else(|| property["items"].get("properties"));
        // A table in a list of a route is part of that key; documents explain it there.
        let is_section = property.get("items").is_none() || path.split('.').count() == 1;
        match members.and_then(Value::as_object) {
            Some(members) if is_section => {
                for (name, property) in members {
                    walk(property, &format!("{path}.{name}"), keys);
                }
            }
            _ if missing => {}
            _ => {
                keys.insert(path.to_owned(), property.get("default").cloned());
            }
        }
    }

    fn validator() -> jsonschema::Validator {
        jsonschema::draft202012::options().build(&json_schema()).expect("a schema")
    }

    fn as_json(text: &str) -> Value {
        serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap()
    }

    #[test]
    fn the_schema_is_one_and_takes_the_example() {
        let schema = json_schema();
        assert!(jsonschema::meta::is_valid(&schema));
        let errors: Vec<String> =
            validator().iter_errors(&as_json(report::EXAMPLE)).map(|error| error.to_string()).collect();
        assert_eq!(errors, [""; 0]);
    }

    /// Goal: an editor marks what `config check` refuses. Method: each slip is refused by both; its neighbour that is
    /// right is taken by both.
    #[test]
    fn the_schema_refuses_the_slips_that_the_program_refuses() {
        const UPSTREAM: &str = "[[upstream]]\nname = \"api\"\nurl = \"http://127.0.0.1:9000\"\n";
        let validator = validator();
        for (right, slip) in [
            ("[listen]\naddress = \"127.0.0.1:1\"\n", "[listen]\nadress = \"127.0.0.1:1\"\n"),
            ("[defaults]\nlease = \"10s\"\n", "[defaults]\nlease = 10\n"),
            ("[defaults]\nlease = \"500ms\"\n", "[defaults]\nlease = \"10\"\n"),
            ("[limits]\nheaders = \"64KiB\"\n", "[limits]\nheaders = \"64KB\"\n"),
            ("[limits]\nwaiters = 1\n", "[limits]\nwaiters = -1\n"),
            ("[defaults]\nmismatch_status = 409\n", "[defaults]\nmismatch_status = 404\n"),
            ("[defaults.record]\npreset = \"stripe\"\n", "[defaults.record]\npreset = \"strip\"\n"),
            ("[[route]]\nname = \"a\"\n", "[[route]]\nname = \"A\"\n"),
            ("[[route]]\nname = \"a\"\n", "[[route]]\nmode = \"off\"\n"),
            ("[[route]]\nname = \"a\"\n", "[route]\nname = \"a\"\n"),
            ("[defaults]\nmode = \"off\"\n", "[defaults]\nname = \"a\"\n"),
            ("[defaults]\nmatch = { methods = [\"PUT\"] }\n", "[defaults]\nmatch = { path = \"/a\" }\n"),
            (
                "[[route]]\nname = \"a\"\nmatch = { path = \"/a\" }\n",
                "[[route]]\nname = \"a\"\nmatch = { path = \"a\" }\n",
            ),
            ("[defaults]\nkey = { from = [\"json:/a\"] }\n", "[defaults]\nkey = { from = [\"body:/a\"] }\n"),
            ("[defaults]\non_unknown = [{ hold = \"1h\" }, \"fail\"]\n", "[defaults]\non_unknown = [{ hold = 1 }]\n"),
            ("[defaults]\non_unknown = [\"retry\"]\n", "[defaults]\non_unknown = [\"again\"]\n"),
            (
                "[defaults.record]\nrelease_when = [{ status = 503, header = \"x-a\" }]\n",
                "[defaults.record]\nrelease_when = [{ header = \"x-a\" }]\n",
            ),
            ("[defaults]\non_unknown = [{ hold = \"1h\" }]\n", "[defaults]\non_unknown = [{}]\n"),
            ("[defaults.scope]\nprincipal = [\"header:X-User\"]\n", "[defaults.scope]\nprincipal = [\"user\"]\n"),
            ("[store]\nkind = \"embedded\"\n", "[store]\nkind = \"mongo\"\n"),
        ] {
            for (text, taken) in [(right, true), (slip, false)] {
                let text = format!("{UPSTREAM}{text}");
                let report = report::check_text("f", &text, &Environment::default());
                assert_eq!(report.ok(), taken, "config check: {text}\n{}", report.text());
                assert_eq!(validator.is_valid(&as_json(&text)), taken, "config schema: {text}");
            }
        }
    }

    #[test]
    fn what_is_not_available_is_refused_by_the_schema_too() {
        let validator = validator();
        for (key, _) in NOT_AVAILABLE {
            let (path, value) = key.split_once(" = ").unwrap_or((key, "{}"));
            let value = match (path, value) {
                ("route.on_unknown", value) => format!("[{value}]"),
                (_, value) => value.to_owned(),
            };
            let text = match path.split_once('.') {
                Some(("route", key)) => format!("[[route]]\nname = \"a\"\n{key} = {value}\n"),
                Some(("upstream", "url")) => format!("[[upstream]]\nname = \"a\"\nurl = {value}\n"),
                Some(("upstream", key)) => format!("[[upstream]]\nname = \"a\"\nurl = \"http://h\"\n{key} = {value}\n"),
                Some((section, key)) => format!("[{section}]\n{key} = {value}\n"),
                None => format!("[{path}]\n"),
            };
            assert!(!validator.is_valid(&as_json(&text)), "{key}: {text}");
        }
    }

    // ===== the documents =====

    /// The rows of tables with a column "default": names with their defaults in words, the mark of what is not built
    /// taken off, and the whole line.
    fn documented(text: &str) -> Vec<(String, String, String)> {
        let mut rows = Vec::new();
        let mut section = "";
        let mut in_table = false;
        for line in text.lines() {
            if !line.starts_with('|') {
                in_table = false;
                // What stands above a table says whose keys it has.
                for (words, prefix) in [
                    ("`[[upstream]]`", "upstream."),
                    ("`[limits]`", "limits."),
                    ("`[reconcile]`", "reconcile."),
                    ("`[telemetry]`", "telemetry."),
                    ("`[quota]`", "quota."),
                    ("## Routes", "route."),
                    ("What a `[[route]]`", "route."),
                ] {
                    if line.starts_with(words) {
                        section = prefix;
                    }
                }
                continue;
            }
            let line = line.replace("\\|", "\u{1}");
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if cells.get(1) == Some(&"default") {
                in_table = true;
            } else if in_table && !line.starts_with("|---") {
                let names = spans(cells[0]);
                let mut defaults = if names.len() == 1 { vec![cells[1].to_owned()] } else { parts(cells[1]) };
                if defaults.len() == 1 {
                    defaults = vec![defaults[0].clone(); names.len()];
                }
                assert_eq!(names.len(), defaults.len(), "as many defaults as keys: {line}");
                for (name, default) in names.into_iter().zip(defaults) {
                    let is_whole = !["route.", "upstream."].contains(&section) && name.contains('.');
                    let name = if is_whole { name } else { format!("{section}{name}") };
                    rows.push((name, default, line.clone()));
                }
            }
        }
        rows
    }

    /// What stands between backticks.
    fn spans(cell: &str) -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
    }

    /// Parts at commas that are not between backticks.
    fn parts(cell: &str) -> Vec<String> {
        let mut parts = vec![String::new()];
        let mut quoted = false;
        for char in cell.chars() {
            quoted ^= char == '`';
            match parts.last_mut() {
                Some(_) if char == ',' && !quoted => parts.push(String::new()),
                Some(part) => part.push(char),
                None => {}
            }
        }
        parts.iter().map(|part| part.trim().to_owned()).collect()
    }

    /// A default as documents spell it.
    fn spelled(value: &Value) -> String {
        match value {
            Value::String(text) => text.clone(),
            Value::Array(items) => format!("[{}]", items.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")),
            other => other.to_string(),
        }
    }

    /// Holds one document to the schema; `of_others` are keys that it may have besides.
    fn hold(name: &str, of_others: impl Fn(&str) -> bool) {
        let rows = documented(&document(name));
        let keys = keys();
        for (key, default) in &keys {
            // Its own row, or that of its table, which names it.
            let own = rows.iter().find(|(name, ..)| name == key);
            let short = key.rsplit('.').next().unwrap();
            let of_table =
                || rows.iter().find(|(name, _, line)| key.starts_with(&format!("{name}.")) && line.contains(short));
            let Some((row, said, _)) = own.or_else(of_table) else { panic!("docs/{name} has no row for {key}") };
            if row == key
                && let Some(default) = default
            {
                let said = if said.contains('`') { spans(said).join("") } else { said.replace(' ', "") };
                assert_eq!(said, spelled(default), "the default of {key} in docs/{name}");
            }
        }
        for (row, ..) in &rows {
            let known = keys.keys().any(|key| key == row || key.starts_with(&format!("{row}.")));
            assert!(known || of_others(row), "docs/{name} has {row}, which is no key");
        }
    }

    #[test]
    fn the_contract_has_every_key_with_its_default_and_marks_the_others() {
        hold("protocol.md", |row| NOT_AVAILABLE.iter().any(|(name, _)| *name == row));
    }

    #[test]
    fn the_reference_has_every_key_of_this_version_with_its_default() {
        hold("configuration.md", |_| false);
    }

    #[test]
    fn the_example_has_every_key_of_this_version_with_its_default() {
        let example = as_json(report::EXAMPLE);
        for (key, default) in keys() {
            let path = key.replacen("route.", "defaults.", 1).replace("upstream.", "upstream.0.");
            let at = format!("/{}", path.replace('.', "/"));
            let said = if key.starts_with("route.upstream") { None } else { example.pointer(&at) };
            let short = key.rsplit('.').next().unwrap();
            match (said, default) {
                (Some(said), Some(default)) => assert_eq!(*said, default, "{key}"),
                // Without a default it is commented out, or depends on what is beside it.
                _ => assert!(report::EXAMPLE.contains(&format!("{short} = ")), "{key} is not in example.toml"),
            }
        }
    }
}
