//! Redis as tests use it: what it keeps, who follows it, who comes in, and what is left of it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use servers::{Redis, RedisCluster, Relay, Sentinels};

/// In the child of [`a_test_that_is_killed_leaves_no_server`].
const CHILD: &str = "ONCEWARD_SERVERS_TEST_CHILD";

#[test]
fn data_outlives_a_server_only_where_it_is_told_to_keep_it() {
    let kept_after = |settings: &[(&str, &str)], end: fn(&mut Redis)| {
        let mut server = Redis::start(settings).unwrap();
        let port = server.port();
        assert_eq!(server.command(&["SET", "hat", "sold"]).unwrap(), "OK");
        end(&mut server);
        assert!(server.command(&["PING"]).is_err(), "it is gone");
        server.start_again().unwrap();
        assert_eq!(server.port(), port);
        server.command(&["GET", "hat"]).unwrap()
    };
    let kill = |server: &mut Redis| server.kill().unwrap();
    let stop = |server: &mut Redis| server.stop().unwrap();
    assert_eq!(kept_after(&[], kill), "");
    assert_eq!(kept_after(&[], stop), "");
    assert_eq!(kept_after(&[("appendonly", "yes"), ("appendfsync", "always")], kill), "sold");
    assert_eq!(kept_after(&[("save", "3600 1")], kill), "", "no snapshot was due");
    assert_eq!(kept_after(&[("save", "3600 1")], stop), "sold", "an operator's shutdown makes one");
}

#[test]
fn a_replica_has_what_its_primary_has_and_writes_once_it_is_promoted() {
    // Its users log in with a password, and so must the replica.
    let mut first = Redis::start(&[("requirepass", "a-secret")]).unwrap();
    first.command(&["SET", "hat", "sold"]).unwrap();
    let second = first.replica().unwrap();
    assert_eq!(second.command(&["GET", "hat"]).unwrap(), "sold");
    let refused = second.command(&["SET", "hat", "returned"]).unwrap_err();
    assert!(format!("{refused:#}").contains("READONLY"), "{refused:#}");

    first.kill().unwrap();
    second.promote().unwrap();
    second.command(&["SET", "hat", "returned"]).unwrap();
    // It comes back as what it was, and is told that there is another now.
    first.start_again().unwrap();
    assert_eq!(first.command(&["GET", "hat"]).unwrap(), "");
    first.replicate(&second).unwrap();
    first.replicate(&second).unwrap();
    assert_eq!(first.command(&["GET", "hat"]).unwrap(), "returned");
    first.kill().unwrap();
    first.start_again().unwrap();
    assert_eq!(first.command(&["ROLE"]).unwrap().lines().next(), Some("slave"));
}

#[test]
fn a_replica_that_is_cut_off_is_stale_when_it_is_promoted_and_follows_again_when_it_can() {
    let primary = Redis::start(&[]).unwrap();
    let between = Relay::before(primary.port()).unwrap();
    let replica = primary.replica_through(between.port()).unwrap();
    primary.command(&["SET", "hat", "sold"]).unwrap();
    primary.wait_for_replicas(1).unwrap();
    between.refuse().unwrap();
    between.cut();
    primary.command(&["SET", "hat", "returned"]).unwrap();
    replica.promote().unwrap();
    assert_eq!(replica.command(&["GET", "hat"]).unwrap(), "sold");
    between.accept().unwrap();
    replica.replicate(&primary).unwrap();
    assert_eq!(replica.command(&["GET", "hat"]).unwrap(), "returned");
}

#[test]
fn users_come_in_over_each_of_its_ways_with_their_own_rights() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let server = Redis::start_with_tls(&[], &certificate, &key).unwrap();
    let over = |url: &str| {
        let mut cli = Command::new("redis-cli");
        match url.strip_prefix("redis+unix://") {
            Some(socket) => cli.args(["-s", socket]),
            None => cli.args(["--insecure", "-u", url]),
        };
        let output = cli.arg("PING").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(over(&server.url()), "PONG\n");
    assert_eq!(over(&server.tls_url().unwrap()), "PONG\n");
    assert_eq!(over(&server.socket_url()), "PONG\n");

    let acl = "user default off\nuser till on >till-secret ~till:* +get +set +ping";
    let server = Redis::start_with_acl(&[], acl).unwrap();
    assert!(server.tls_url().is_err());
    assert_eq!(over(&server.url_of("till", "till-secret")), "PONG\n");
    assert!(over(&server.url()).starts_with("NOAUTH"), "default is off");
    let till = |words: &[&str]| server.command_as("till", "till-secret", words);
    assert_eq!(till(&["SET", "till:1", "open"]).unwrap(), "OK");
    assert!(format!("{:#}", till(&["SET", "safe", "open"]).unwrap_err()).contains("NOPERM"));
    assert!(format!("{:#}", till(&["FLUSHALL"]).unwrap_err()).contains("NOPERM"));
    assert!(server.command_as("till", "a-guess", &["PING"]).is_err());
    // Its replicas have the same users.
    let replica = server.replica().unwrap();
    assert_eq!(replica.command_as("till", "till-secret", &["GET", "till:1"]).unwrap(), "open");
}

#[test]
fn a_server_that_is_paused_answers_once_it_is_let_go_on_and_can_be_ended_before() {
    let mut server = Redis::start(&[]).unwrap();
    let mut connection = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    server.pause().unwrap();
    connection.write_all(b"PING\r\n").unwrap();
    connection.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut answer = [0; 7];
    connection.read_exact(&mut answer).unwrap_err();
    server.resume().unwrap();
    connection.set_read_timeout(None).unwrap();
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    server.pause().unwrap();
    server.kill().unwrap();
    server.start_again().unwrap();
    server.pause().unwrap();
    server.stop().unwrap();
    server.start_again().unwrap();
    assert!(server.answers());
    server.pause().unwrap();
    let folder = server.data();
    drop(server);
    assert!(!folder.exists());
}

#[test]
fn a_test_that_is_killed_leaves_no_server() {
    if std::env::var_os(CHILD).is_some() {
        let server = Redis::start(&[]).unwrap();
        println!("\nport {}", server.port());
        // For as long as the parent lives, at most.
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_test_that_is_killed_leaves_no_server", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let port = lines.filter_map(|line| line.strip_prefix("port ")?.parse::<u16>().ok()).next().unwrap();
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.write_all(b"PING\r\n").unwrap();
    connection.read_exact(&mut [0; 7]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The guard ends the server: the connection ends with it.
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let ended = connection.read(&mut [0; 1]);
    assert!(matches!(&ended, Ok(0)) || ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
}

#[test]
fn sentinels_put_a_replica_in_the_place_of_a_primary_that_is_killed_and_of_one_that_is_told_to_go() {
    let mut shop = Sentinels::start(&[("requirepass", "a-secret")], 2, Some(("watcher", "another"))).unwrap();
    assert_eq!((shop.primary().unwrap(), shop.ports().len()), (0, 3));
    let asked = |port: u16, user: &str, password: &str| {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &port.to_string(), "--no-auth-warning", "--user", user, "--pass", password]);
        let output = cli.args(["SENTINEL", "MASTERS"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for port in shop.ports() {
        assert!(asked(port, "watcher", "another").contains(&shop.primary_port().unwrap().to_string()));
        assert!(asked(port, "default", "a-secret").contains("NOAUTH"), "a data server's password is another's");
    }
    shop.node(0).unwrap().command(&["SET", "hat", "sold"]).unwrap();
    shop.node(0).unwrap().wait_for_replicas(2).unwrap();

    assert_eq!(shop.kill_primary().unwrap(), 0);
    let second = shop.primary().unwrap();
    assert_ne!(second, 0);
    assert_eq!(shop.node(second).unwrap().command(&["GET", "hat"]).unwrap(), "sold");
    shop.node(second).unwrap().command(&["SET", "hat", "returned"]).unwrap();
    // It comes back as a primary, and a Sentinel makes it a replica.
    shop.node(0).unwrap().start_again().unwrap();
    shop.settle().unwrap();
    assert_eq!(shop.node(0).unwrap().command(&["GET", "hat"]).unwrap(), "returned");

    // Two of three are enough.
    shop.kill_sentinel(0).unwrap();
    shop.failover().unwrap();
    let third = shop.primary().unwrap();
    assert_ne!(third, second);
    shop.settle().unwrap();
    assert_eq!(shop.node(third).unwrap().command(&["SET", "hat", "sold"]).unwrap(), "OK");
    shop.start_sentinel_again(0).unwrap();
}

#[test]
fn a_cluster_moves_a_slot_step_by_step_and_a_replica_takes_the_place_of_a_primary() {
    let mut cluster = RedisCluster::start(&[("cluster-require-full-coverage", "no")]).unwrap();
    let slot = cluster.slot_of("{hat}").unwrap();
    let from = cluster.primary_of(slot).unwrap();
    let to = (from + 1) % 3;
    let at = |cluster: &RedisCluster, node: usize, words: &[&str]| cluster.nodes()[node].command(words);
    for number in 0..3 {
        assert_eq!(at(&cluster, from, &["SET", &format!("{{hat}}{number}"), "sold"]).unwrap(), "OK");
    }
    // A key may be any bytes.
    let odd = "{hat}\"\n \u{1}'ä";
    at(&cluster, from, &["SET", odd, "odd"]).unwrap();

    let moving = cluster.begin_move(slot, to).unwrap();
    assert_eq!((moving.slot, moving.from, moving.to), (slot, from, to));
    assert_eq!(cluster.move_keys(moving, 2).unwrap(), 2);
    // In the middle of it: who asks the old node for what is gone is sent on, and nobody can have both.
    let keys = ["{hat}0", "{hat}1", "{hat}2", odd];
    let said: Vec<_> = keys.iter().map(|key| at(&cluster, from, &["GET", key]).map_err(|e| format!("{e:#}"))).collect();
    assert_eq!(
        said.iter().filter(|said| said.as_ref().is_err_and(|said| said.contains("ASK "))).count(),
        2,
        "{said:?}"
    );
    let all = at(&cluster, from, &["MGET", keys[0], keys[1], keys[2], odd]).unwrap_err();
    assert!(format!("{all:#}").contains("TRYAGAIN"), "{all:#}");
    assert!(cluster.end_move(moving).is_err(), "two keys would be lost");
    assert_eq!(cluster.move_keys(moving, 100).unwrap(), 2);
    assert_eq!(cluster.move_keys(moving, 100).unwrap(), 0);
    cluster.end_move(moving).unwrap();
    assert_eq!(cluster.primary_of(slot).unwrap(), to);
    assert_eq!(at(&cluster, to, &["MGET", keys[0], keys[1], keys[2], odd]).unwrap(), "sold\nsold\nsold\nodd");
    assert!(format!("{:#}", at(&cluster, from, &["GET", odd]).unwrap_err()).contains("MOVED"));

    assert_eq!(at(&cluster, to, &["SET", odd, "still"]).unwrap(), "OK");
    cluster.nodes()[to].wait_for_replicas(1).unwrap();
    let killed = cluster.kill_primary(slot).unwrap();
    assert_eq!(cluster.wait_for_failover(slot, killed).unwrap(), killed + 3);
    let next = killed + 3;
    assert_eq!(at(&cluster, next, &["GET", odd]).unwrap(), "still");
    cluster.start_again(killed).unwrap();
    assert_eq!(at(&cluster, killed, &["ROLE"]).unwrap().lines().next(), Some("slave"));
    cluster.move_slot(slot, from).unwrap();
    assert_eq!(at(&cluster, from, &["GET", odd]).unwrap(), "still");
}

#[test]
fn valkey_is_served_as_redis_is() {
    let mut server = Redis::valkey(&[("appendonly", "yes"), ("appendfsync", "always")]).unwrap();
    let version = server.command(&["INFO", "server"]).unwrap();
    assert!(version.contains("server_name:valkey"), "{version}");
    server.command(&["SET", "hat", "sold"]).unwrap();
    let replica = server.replica().unwrap();
    server.wait_for_replicas(1).unwrap();
    server.kill().unwrap();
    server.start_again().unwrap();
    assert_eq!(server.command(&["GET", "hat"]).unwrap(), "sold");
    replica.promote().unwrap();
    replica.command(&["SET", "hat", "returned"]).unwrap();
    server.replicate(&replica).unwrap();
    assert_eq!(server.command(&["GET", "hat"]).unwrap(), "returned");
    server.stop().unwrap();
}
