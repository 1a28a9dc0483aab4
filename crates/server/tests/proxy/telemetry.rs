//! Metrics and traces, as a collector gets them.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::any_value::Value,
    metrics::v1::{Metric, metric::Data},
    trace::v1::Span,
};
use prost::Message;

use super::support::{Start, Upstream, request, until};

/// What has come to a collector.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    metrics: Arc<Mutex<Vec<Metric>>>,
}

impl Collector {
    /// Listens, and says where.
    async fn start() -> (Self, String) {
        let this = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route(
                "/v1/traces",
                post(async |State(this): State<Self>, body: Bytes| {
                    let request = ExportTraceServiceRequest::decode(body).unwrap();
                    let spans =
                        request.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans);
                    this.spans.lock().unwrap().extend(spans);
                }),
            )
            .route(
                "/v1/metrics",
                post(async |State(this): State<Self>, body: Bytes| {
                    let request = ExportMetricsServiceRequest::decode(body).unwrap();
                    let metrics = request.resource_metrics.into_iter().flat_map(|of| of.scope_metrics);
                    *this.metrics.lock().unwrap() = metrics.flat_map(|of| of.metrics).collect();
                }),
            )
            .with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (this, format!("http://{address}"))
    }

    fn span(&self, decision: &str) -> Option<Span> {
        let is_it = |span: &&Span| attribute(span, "onceward.decision") == Some(Value::StringValue(decision.into()));
        self.spans.lock().unwrap().iter().find(is_it).cloned()
    }
}

fn attribute(span: &Span, name: &str) -> Option<Value> {
    span.attributes.iter().find(|attribute| attribute.key == name)?.value.as_ref()?.value.clone()
}

// contract: telemetry.otlp, telemetry.interval, telemetry.trace_percent
#[tokio::test]
async fn a_collector_gets_the_metrics_and_the_spans_that_are_out_of_the_ordinary() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let (collector, url) = Collector::start().await;
    let upstream = Upstream::charging().await;
    let telemetry = format!("[telemetry]\notlp = \"{url}\"\ninterval = \"100ms\"\ntrace_percent = 0\n");
    let gateway = Start::before(&upstream).config(&telemetry).start().await;
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let pay = |body: &'static str| {
        request("POST", "/pay", &[("Idempotency-Key", "secret-key"), ("Traceparent", &parent)], body)
    };
    assert_eq!(gateway.ask(pay("{}")).await.status, 201);
    assert_eq!(gateway.ask(pay("{\"a\":1}")).await.status, 422);
    until("the span", async || collector.span("mismatch").is_some()).await;
    let span = collector.span("mismatch").unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!((hex(&span.trace_id).as_str(), hex(&span.parent_span_id).as_str()), (TRACE, "b7ad6b7169203331"));
    assert_eq!(attribute(&span, "http.response.status_code"), Some(Value::IntValue(422)));
    assert!(span.end_time_unix_nano > span.start_time_unix_nano, "{span:?}");
    assert!(!format!("{span:?}").contains("secret-key"), "{span:?}");
    // Nothing else was chosen.
    assert!(collector.span("executed").is_none());
    let executed = async || {
        let metrics = collector.metrics.lock().unwrap();
        let requests = metrics.iter().find(|metric| metric.name == "onceward_requests_total");
        requests.is_some_and(|metric| {
            let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
            format!("{:?}", sum.data_points).contains("executed")
        })
    };
    until("the metrics", executed).await;
}

#[tokio::test]
async fn a_trace_that_its_client_samples_is_sent_and_a_collector_that_is_down_costs_no_request() {
    let (collector, url) = Collector::start().await;
    let upstream = Upstream::charging().await;
    let start =
        |url: &str| Start::before(&upstream).config(&format!("[telemetry]\notlp = \"{url}\"\ninterval = \"100ms\"\n"));
    let gateway = start(&url).start().await;
    let parent = "00-00000000000000000000000ffffffff0-b7ad6b7169203331-01";
    let sampled = request("POST", "/pay", &[("Idempotency-Key", "k"), ("Traceparent", parent)], "{}");
    assert_eq!(gateway.ask(&sampled).await.status, 201);
    until("the span", async || collector.span("executed").is_some()).await;
    let span = collector.span("executed").unwrap();
    assert_eq!(attribute(&span, "onceward.attempt"), Some(Value::IntValue(1)));

    let gateway = start("http://127.0.0.1:9").start().await;
    assert_eq!(gateway.ask(&sampled).await.status, 201);
    assert!(gateway.ask(&sampled).await.is_replay());
    let failed = async || gateway.metrics().await.contains("onceward_telemetry_failures_total{signal=\"metrics\"}");
    until("the failure", failed).await;
}
