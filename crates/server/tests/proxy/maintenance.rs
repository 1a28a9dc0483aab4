//! Work of the store that waits for its window.

use std::time::{Duration, SystemTime};

use super::support::{Gateway, Start, Upstream, metric, until};

const SHORT: &str = "[defaults]\nretention = \"1s\"\nclient_retries = \"0s\"\nlease = \"100ms\"\ntimeout = \"500ms\"\n\
                     execution_max = \"800ms\"\nin_flight = { wait = \"100ms\" }\n[store]\nmax_records = 20\n";

/// An hour of the day, so many hours from now.
fn window(from_now: u64) -> String {
    #[expect(clippy::disallowed_methods, reason = "the gateway's window is by this clock")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let hour = (now + Duration::from_secs(from_now * 3600)).as_secs() / 3600 % 24;
    format!("[maintenance]\nwindow = \"{hour:02}:00-{:02}:00 UTC\"\n", (hour + 2) % 24)
}

async fn figure(gateway: &Gateway, line: &str) -> f64 {
    metric(&gateway.metrics().await, line)
}

const SETTLED: &str = "onceward_records{state=\"settled\"}";
const COLLECTED: &str = "onceward_collected_records_total{reason=\"retention\"}";

// contract: maintenance.window
#[tokio::test]
async fn ended_records_wait_for_their_window_unless_their_room_is_needed() {
    let upstream = Upstream::charging().await;
    let waits = Start::before(&upstream).config(&(window(12) + SHORT)).start().await;
    let now = Start::before(&upstream).config(&(window(23) + SHORT)).start().await;
    for gateway in [&waits, &now] {
        assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 201);
    }
    until("the record's removal in the window", async || figure(&now, COLLECTED).await >= 1.0).await;
    until("its end where it waits", async || !waits.post("/pay", "k-1", "{}").await.is_replay()).await;
    until("its end once more", async || !waits.post("/pay", "k-1", "{}").await.is_replay()).await;
    // Figures are shown right after each turn: two of them have passed since the end.
    for turn in 0..2 {
        let before = figure(&waits, SETTLED).await;
        assert_eq!(waits.post("/pay", &format!("turn-{turn}"), "{}").await.status, 201);
        until("a turn", async || figure(&waits, SETTLED).await > before).await;
    }
    assert!(figure(&waits, COLLECTED).await < 0.5, "it waits for the window");

    // More than there is room for, unless some is made meanwhile.
    for more in 0..40 {
        let status = waits.post("/pay", &format!("more-{more}"), "{}").await.status;
        assert!(status == 201 || status == 503, "{status}");
    }
    until("room", async || waits.post("/pay", "last", "{}").await.status == 201).await;
    assert!(figure(&waits, COLLECTED).await > 0.5);
}
