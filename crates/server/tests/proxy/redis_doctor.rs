//! `onceward doctor` on the servers of `[store.redis]`.

use servers::Redis;

use super::{
    redis::{config, secret, url as named},
    support::{Start, Upstream, onceward, output},
};

pub(super) async fn look(url: &str) -> (Option<i32>, String) {
    look_with(url, |config| config).await
}

async fn look_with(url: &str, change: impl FnOnce(String) -> String) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("onceward.toml");
    let upstream = "\n[[upstream]]\nname = \"api\"\nurl = \"http://127.0.0.1:9\"\n";
    std::fs::write(&file, change(config(&format!("url = \"{url}\""), upstream))).unwrap();
    let mut command = onceward();
    command.args(["doctor", "--config"]).arg(&file);
    let done = output(command).await;
    (done.status.code(), String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap())
}

#[tokio::test]
async fn the_doctor_tells_what_redis_loses_what_it_may_not_ask_and_what_memory_is_needed() {
    let server = Redis::start(&[]).unwrap();
    let (code, said) = look(&server.url()).await;
    assert_eq!(code, Some(0), "{said}");
    for well in ["connection", "version", "role", "eviction", "scripts", "clock", "notifications", "foreign keys"] {
        assert!(said.contains(&format!("ok   {well}: ")), "{well}: {said}");
    }
    for doubtful in ["memory", "persistence", "replicas"] {
        assert!(said.contains(&format!("warn {doubtful}: ")), "{doubtful}: {said}");
    }
    // 800 bytes, 300 of them the body's, a day, ten a second.
    assert!(said.contains("budget: ") && said.contains("24 h: 660 MiB at 10 keys a second"), "{said}");
    assert!(said.contains("With retention_body = \"1h\" it is for 24 h: 423 MiB at 10 keys a second"), "{said}");

    server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).unwrap();
    server.command(&["CONFIG", "SET", "maxmemory", "20mb"]).unwrap();
    server.command(&["SET", "session:9", "somebody else's"]).unwrap();
    let (code, said) = look(&server.url()).await;
    assert!(code == Some(1) && said.contains("BAD  eviction: ") && said.contains("noeviction"), "{said}");
    assert!(said.contains("warn foreign keys: 1 of 1") && said.contains("warn budget: "), "{said}");
}

#[tokio::test]
async fn the_doctor_says_which_right_is_missing_and_the_access_list_that_is_shipped_has_them_all() {
    let shipped = include_str!("../../../../deploy/redis/onceward.acl");
    let server = Redis::start_with_acl(&[], shipped).unwrap();
    let url = server.url_of("onceward", "change-me");
    let (code, said) = look(&url).await;
    assert!(code == Some(0) && !said.contains("cannot tell"), "{said}");
    for (without, want) in [
        ("-eval", "BAD  scripts: "),
        ("-info", "warn info: "),
        ("-time", "warn clock: "),
        ("resetchannels", "warn notifications: "),
    ] {
        server.command(&["ACL", "SETUSER", "onceward", without]).unwrap();
        let (_, said) = look(&url).await;
        assert!(said.contains(want), "{without}: {said}");
    }
    let (code, said) = look(&server.url_of("onceward", "wrong")).await;
    assert!(code == Some(1) && said.contains("BAD  connection: ") && said.contains("password"), "{said}");
}

#[tokio::test]
async fn the_doctor_says_whether_the_records_were_made_with_this_secret_and_does_not_say_which() {
    let (server, upstream) = (Redis::start(&[]).unwrap(), Upstream::charging().await);
    let (_, said) = look(&server.url()).await;
    assert!(said.contains("ok   secret: no gateway has been here"), "{said}");
    let gateway = Start::before(&upstream).config(&config(&named(&server), "")).start().await;
    let log = gateway.says("through the gateways of this store only").await;
    assert!(!log.contains("through this process only"), "{log}");
    let (code, said) = look(&server.url()).await;
    assert!(code == Some(0) && said.contains("ok   secret: that of the records there"), "{said}");
    let other = |config: String| config.replace(&secret(7), &secret(8));
    let (code, said) = look_with(&server.url(), other).await;
    assert!(code == Some(1) && said.contains("BAD  secret: ") && said.contains("another install secret"), "{said}");
    assert!(!said.contains(&secret(7)) && !said.contains(&secret(8)), "{said}");
    let both = |config| other(config).replace("[store]", &format!("previous = \"{}\"\n[store]", secret(7)));
    let (code, said) = look_with(&server.url(), both).await;
    assert!(
        code == Some(0) && said.contains("ok   secret: the records there were made with the previous one"),
        "{said}"
    );
}
