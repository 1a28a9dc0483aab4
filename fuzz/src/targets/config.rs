//! The configuration's text: whatever stands in it, a configuration or an answer that can be shown.

use onceward_server::config::{Config, Environment, Flags};

use crate::{Target, shape};

pub(crate) const TARGET: Target = Target {
    name: "config",
    run,
    bytes_max: 4096,
    words: &[
        "[listen]\n",
        "[defaults]\n",
        "[[route]]\n",
        "[[upstream]]\n",
        "name = \"a\"\n",
        "url = \"http://h\"\n",
        "[store]\n",
        "match = { path = \"/a/{id}\" }\n",
        "key = { missing = \"required\" }\n",
        "\"7d\"",
        "\"24h\"",
        "[\"probe\", \"hold\"]",
        "= ",
        "{ ",
        " }",
        "\"\"\"",
        "'",
        "#",
        "1e9",
        "-1",
        "true",
        "[quota]\n",
        "\"{*rest}\"",
        "\"10MiB\"",
        "\\u001b[31m",
        "[limits]\n",
        "retention = ",
        "fingerprint = { strip = [\"/a\"] }\n",
        "\u{1b}[31m",
        "\u{202e}",
        ".",
        "\n",
    ],
};

fn run(input: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(input);
    let environment = Environment::from_pairs([("TOKEN", "hunter2-hunter2-hunter2")]);
    match Config::parse("onceward.toml", &text, &Flags::default(), &environment) {
        Ok(config) => {
            assert!(!format!("{config:?}").contains("hunter2"), "a secret is shown");
            shape(("config", config.routes.len().min(4), config.upstreams.len().min(4)))
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.trim().is_empty(), "an error without words");
            assert!(!message.contains("hunter2"), "a secret is shown: {message}");
            // It goes to a terminal.
            let odd = message.chars().find(|letter| letter.is_control() && *letter != '\n');
            assert_eq!(odd, None, "{message:?}");
            let first = message.lines().next().unwrap_or_default();
            shape(
                first.split(|letter: char| letter.is_ascii_digit() || letter == '"').collect::<Vec<_>>().concat().len()
                    / 4,
            )
        }
    }
}
