//! Metrics and traces for a collector, by OTLP over HTTP (protobuf).
//!
//! `figures` what Prometheus is shown, as OTLP has it · `spans` requests as spans, a part of them and all that is out of
//! the ordinary. Nothing waits for the collector: one that is down or slow costs what could not be sent, and is counted.

mod figures;
mod spans;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use metrics_exporter_prometheus::PrometheusHandle;
use onceward::Engine;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
};
use prost::Message;
use tokio::{sync::mpsc, task::JoinHandle};

use crate::config::Telemetry;

/// For one export, its answer included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Spans that wait for their export; more are dropped and counted.
const SPANS_MAX: usize = 4096;
/// Spans of one export.
const BATCH_MAX: usize = 512;
/// How long a span waits for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);

/// Starts what the configuration asks for: nothing where it names no collector. The tasks end when they are aborted.
pub(crate) fn start(said: &Telemetry, engine: &Engine, figures: PrometheusHandle) -> Vec<JoinHandle<()>> {
    let Some(collector) = &said.otlp else { return Vec::new() };
    metrics::describe_counter!("onceward_spans_dropped_total", "Spans for which there was no room, or no collector");
    metrics::describe_counter!(
        "onceward_telemetry_failures_total",
        "Exports that the collector did not take, by signal"
    );
    let exporter = Arc::new(Exporter::new(collector));
    let (sender, waiting) = mpsc::channel(SPANS_MAX);
    let sampler = spans::Sampler::new(said.trace_percent);
    engine.listen(move |told| {
        if let Some(span) = sampler.span(told)
            && sender.try_send(span).is_err()
        {
            metrics::counter!("onceward_spans_dropped_total").increment(1);
        }
    });
    let (engine, interval) = (engine.clone(), said.interval);
    let to = Arc::clone(&exporter);
    let figures = async move {
        let started = now_nanos();
        let mut tick = tokio::time::interval(interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            engine.set_gauges();
            let request = figures::request(&figures.render(), started, now_nanos(), to.resource.clone(), scope());
            to.send("metrics", &to.metrics, request.encode_to_vec()).await;
        }
    };
    vec![tokio::spawn(figures), tokio::spawn(send_spans(exporter, waiting))]
}

async fn send_spans(to: Arc<Exporter>, mut waiting: mpsc::Receiver<opentelemetry_proto::tonic::trace::v1::Span>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while let Some(first) = waiting.recv().await {
        batch.push(first);
        let full = async {
            while batch.len() < BATCH_MAX {
                match waiting.recv().await {
                    Some(span) => batch.push(span),
                    None => return,
                }
            }
        };
        // What has come by then is sent.
        let _late = tokio::time::timeout(BATCH_WAIT, full).await;
        let count = batch.len() as u64;
        let request = spans::request(std::mem::take(&mut batch), to.resource.clone(), scope());
        if !to.send("traces", &to.traces, request.encode_to_vec()).await {
            metrics::counter!("onceward_spans_dropped_total").increment(count);
        }
    }
}

/// The way to a collector.
struct Exporter {
    client: Client<HttpConnector, Full<Bytes>>,
    metrics: Uri,
    traces: Uri,
    resource: Resource,
}

impl Exporter {
    fn new(collector: &Uri) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(EXPORT_TIMEOUT));
        let base = collector.to_string();
        let at = |path: &str| format!("{}{path}", base.trim_end_matches('/')).parse().unwrap_or_default();
        let attributes = vec![
            text("service.name", "onceward"),
            text("service.version", crate::VERSION),
            text("service.instance.id", &uuid::Uuid::new_v4().to_string()),
        ];
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            metrics: at("/v1/metrics"),
            traces: at("/v1/traces"),
            resource: Resource { attributes, ..Resource::default() },
        }
    }

    /// Whether the collector took it. It is not sent again: the next figures say more, and spans are not worth a queue.
    async fn send(&self, signal: &'static str, to: &Uri, body: Vec<u8>) -> bool {
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        request.uri_mut().clone_from(to);
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let why = match tokio::time::timeout(EXPORT_TIMEOUT, self.client.request(request)).await {
            Ok(Ok(response)) if response.status().is_success() => return true,
            Ok(Ok(response)) => format!("it answered {}", response.status()),
            Ok(Err(error)) => error.to_string(),
            Err(_late) => "it did not answer in time".to_owned(),
        };
        metrics::counter!("onceward_telemetry_failures_total", "signal" => signal).increment(1);
        tracing::debug!(signal, error = why, "the collector took no telemetry");
        false
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "onceward".into(), version: crate::VERSION.into(), ..Default::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn now_nanos() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a time for people, nothing is decided by it")]
    let now = SystemTime::now();
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
