//! What `config check` and a start say of certificate files, with line and column.

use std::process::Command;

use rcgen::{DnType, date_time_ymd};

use super::authority::{Authority, Pair};
use crate::support::{onceward, output};

async fn check(config: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    std::fs::write(&file, config).unwrap();
    let mut command: Command = onceward();
    command.args(["config", "check", "c.toml"]).current_dir(folder.path());
    let output = output(command).await;
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.success(), said)
}

#[tokio::test]
async fn each_fault_of_a_certificate_is_told_where_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    let (one, two) = (ca.server("one", &["localhost"]), ca.server("two", &["localhost"]));
    let expired = ca.issue("expired", &["localhost"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 2, 3);
        params.distinguished_name.push(DnType::CommonName, "expired");
    });
    let locked = folder.path().join("locked.key");
    let mut encrypt = Command::new("openssl");
    encrypt.args(["pkey", "-aes256", "-passout", "pass:secret", "-in"]).arg(&one.key).arg("-out").arg(&locked);
    assert!(output(encrypt).await.status.success());
    let tls = |pair: &Pair, more: &str| format!("[listen]\ntls = {{ {}{more} }}\n", pair.said());
    let swapped = Pair { cert: one.cert.clone(), key: two.key.clone() };
    let encrypted = Pair { cert: one.cert.clone(), key: locked };
    let turned = Pair { cert: one.key.clone(), key: one.cert.clone() };
    let folder_as_key = Pair { cert: one.cert.clone(), key: folder.path().to_owned() };
    let upstream = "[[upstream]]\nname = \"api\"\nurl = \"http://h\"\n";
    let https = "[[upstream]]\nname = \"api\"\nurl = \"https://h\"\n";
    let both = |tls: &str, upstream: &str| format!("{tls}{upstream}");
    let rows: Vec<(String, &[&str])> = vec![
        (
            both(&tls(&swapped, ""), upstream),
            &[":2:", "\"key\" of \"tls\" in [listen]", "is not the key of the certificate"],
        ),
        (both(&tls(&encrypted, ""), upstream), &[":2:", "holds an encrypted key", "openssl pkey"]),
        (
            both(&tls(&turned, ""), upstream),
            &["\"cert\" of", "holds no certificate", "\"key\" of", "holds no private key"],
        ),
        (both(&tls(&folder_as_key, ""), upstream), &["is not a file"]),
        (both(&tls(&one, ", client_auth = \"required\""), upstream), &["\"client_auth\" asks clients", "client_ca = "]),
        (both(&tls(&one, ", client_ca = \"x\""), upstream), &["\"client_ca\" counts only where clients are asked"]),
        (both(&tls(&one, ", client_auth = \"always\""), upstream), &["must be \"off\", \"optional\" or \"required\""]),
        (both("[listen]\ntls = { cert = \"x.pem\" }\n", upstream), &[":2:1:", "lacks \"key\""]),
        (format!("{upstream}ca = {:?}\n", ca.file), &[":4:1:", "counts only for an \"https://\" URL"]),
        (format!("{https}client_cert = {{ {} }}\n", swapped.said()), &[":4:", "is not the key of"]),
        (format!("{https}ca = {:?}\n", one.key), &[":4:1:", "holds no certificate"]),
        (both("[defaults]\nscope = { principal = \"mtls\" }\n", upstream), &[":2:", "no client is asked for one"]),
    ];
    for (text, parts) in rows {
        let (is_good, said) = check(&text).await;
        assert!(!is_good, "{text}");
        for part in parts {
            assert!(said.contains(part), "{part:?} for {text}: {said}");
        }
        let secret = std::fs::read_to_string(&one.key).unwrap();
        assert!(!said.contains(secret.lines().nth(1).unwrap()), "nothing of a key: {said}");
    }
    // Good ones; one whose time is over and one that is elsewhere are worth a word.
    let all = format!(", client_ca = {:?}, client_auth = \"optional\"", ca.file);
    let (is_good, said) = check(&format!("{}{https}client_cert = {{ {} }}\n", tls(&one, &all), two.said())).await;
    assert!(is_good && !said.contains("warning"), "{said}");
    let (is_good, said) = check(&format!("{}{upstream}", tls(&expired, ""))).await;
    assert!(is_good && said.contains("warning") && said.contains("expired at 2021-02-03"), "{said}");
    let gone = Pair { cert: "gone.crt".into(), key: "gone.key".into() };
    let (is_good, said) = check(&format!("{}{upstream}", tls(&gone, ""))).await;
    assert!(
        is_good && said.contains("c.toml:2:9: warning: \"cert\" of \"tls\" in [listen]: gone.crt: cannot be read"),
        "{said}"
    );
}

#[tokio::test]
async fn a_start_without_its_certificates_is_refused() {
    let config = "[listen]\ntls = { cert = \"/gone.crt\", key = \"/gone.key\" }\n[[upstream]]\nname = \"a\"\nurl = \"http://h\"\n";
    let (code, said) = crate::support::Start::new().config(config).refused().await;
    assert_eq!(code, 2);
    assert!(said.contains(":2:9:") && said.contains("/gone.crt: cannot be read"), "{said}");
}
