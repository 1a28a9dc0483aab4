//! What Prometheus is shown, as OTLP has it: one source, so that both always say the same.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{InstrumentationScope, KeyValue},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};

/// A metric while its lines are read.
struct Reading<'a> {
    help: &'a str,
    kind: &'a str,
    numbers: Vec<(Labels, f64)>,
    histograms: BTreeMap<Labels, Buckets>,
}

type Labels = Vec<(String, String)>;

#[derive(Default)]
struct Buckets {
    /// Up to and with each bound, as Prometheus counts.
    cumulative: Vec<(f64, u64)>,
    sum: f64,
    count: u64,
}

/// `text` is a rendering of this process's own metrics, in Prometheus's format.
pub(super) fn request(
    text: &str,
    started: u64,
    now: u64,
    resource: Resource,
    scope: InstrumentationScope,
) -> ExportMetricsServiceRequest {
    let metrics = read(text).into_iter().map(|(name, reading)| metric(name, reading, started, now)).collect();
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
    let of_us = ResourceMetrics { resource: Some(resource), scope_metrics, ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![of_us] }
}

fn read(text: &str) -> BTreeMap<&str, Reading<'_>> {
    let mut metrics: BTreeMap<&str, Reading<'_>> = BTreeMap::new();
    let mut help = "";
    let mut current = "";
    for line in text.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            help = said.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(said) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = said.split_once(' ') else { continue };
            current = name;
            let (numbers, histograms) = (Vec::new(), BTreeMap::new());
            metrics.insert(name, Reading { help: std::mem::take(&mut help), kind, numbers, histograms });
        } else if let Some((name, labels, value)) = sample(line)
            && let Some(reading) = metrics.get_mut(current)
            && let Some(part) = name.strip_prefix(current)
        {
            reading.add(part, labels, value);
        }
    }
    metrics
}

impl Reading<'_> {
    fn add(&mut self, part: &str, mut labels: Labels, value: f64) {
        if self.kind != "histogram" {
            self.numbers.push((labels, value));
            return;
        }
        let bound = labels.iter().position(|(name, _)| name == "le").map(|at| labels.remove(at).1);
        let buckets = self.histograms.entry(labels).or_default();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts, which are whole and positive"
        )]
        let count = value as u64;
        match (part, bound) {
            ("_bucket", Some(bound)) => buckets.cumulative.extend(bound.parse().ok().map(|bound| (bound, count))),
            ("_sum", _) => buckets.sum = value,
            ("_count", _) => buckets.count = count,
            _ => {}
        }
    }
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let (name, rest) = line.split_at_checked(line.find(['{', ' '])?)?;
    let mut labels = Labels::new();
    let mut rest = rest;
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches(',');
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next()? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next()?.1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (_, char) => value.push(char),
                }
            };
            labels.push((label.to_owned(), value));
            rest = after.get(end + 1..)?;
        }
    }
    Some((name, labels, rest.trim().parse().ok()?))
}

fn metric(name: &str, reading: Reading<'_>, started: u64, now: u64) -> Metric {
    let temporality = AggregationTemporality::Cumulative.into();
    let attributes = |labels: Labels| -> Vec<KeyValue> {
        labels.into_iter().map(|(name, value)| super::text(&name, &value)).collect()
    };
    let number = |(labels, value): (Labels, f64)| NumberDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: started,
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    };
    let data = match reading.kind {
        "histogram" => {
            let point = |(labels, buckets): (Labels, Buckets)| {
                let (explicit_bounds, bucket_counts) = apart(&buckets);
                HistogramDataPoint {
                    attributes: attributes(labels),
                    start_time_unix_nano: started,
                    time_unix_nano: now,
                    count: buckets.count,
                    sum: Some(buckets.sum),
                    bucket_counts,
                    explicit_bounds,
                    ..HistogramDataPoint::default()
                }
            };
            let data_points = reading.histograms.into_iter().map(point).collect();
            Data::Histogram(Histogram { data_points, aggregation_temporality: temporality })
        }
        "counter" => {
            let data_points = reading.numbers.into_iter().map(number).collect();
            Data::Sum(Sum { data_points, aggregation_temporality: temporality, is_monotonic: true })
        }
        _ => Data::Gauge(Gauge { data_points: reading.numbers.into_iter().map(number).collect() }),
    };
    let unit = if name.ends_with("_seconds") { "s" } else { "" };
    Metric {
        name: name.to_owned(),
        description: reading.help.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// The bounds, without the last, which is infinite, and what fell between them.
fn apart(buckets: &Buckets) -> (Vec<f64>, Vec<u64>) {
    let mut below = 0;
    let mut counts = Vec::with_capacity(buckets.cumulative.len());
    for (_, cumulative) in &buckets.cumulative {
        counts.push(cumulative.saturating_sub(below));
        below = *cumulative;
    }
    let bounds = buckets.cumulative.iter().map(|(bound, _)| *bound).filter(|bound| bound.is_finite()).collect();
    (bounds, counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"# HELP a_total Things
# TYPE a_total counter
a_total{route="p\"q\\",outcome="x"} 3
a_total 4

# TYPE b_seconds histogram
b_seconds_bucket{r="1",le="0.1"} 2
b_seconds_bucket{r="1",le="1"} 5
b_seconds_bucket{r="1",le="+Inf"} 6
b_seconds_sum{r="1"} 7.5
b_seconds_count{r="1"} 6

# TYPE c gauge
c -1.5
"#;

    #[test]
    fn what_prometheus_reads_is_what_a_collector_gets() {
        let request = request(TEXT, 1, 2, Resource::default(), InstrumentationScope::default());
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["a_total", "b_seconds", "c"]);
        let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{metrics:?}") };
        assert!(sum.is_monotonic && metrics[0].description == "Things");
        assert_eq!(sum.data_points[0].attributes[0], super::super::text("route", "p\"q\\"));
        assert_eq!(sum.data_points[1].value, Some(number_data_point::Value::AsDouble(4.0)));
        let Some(Data::Histogram(histogram)) = &metrics[1].data else { panic!("{metrics:?}") };
        let point = &histogram.data_points[0];
        assert_eq!(
            (point.explicit_bounds.as_slice(), point.bucket_counts.as_slice()),
            (&[0.1, 1.0][..], &[2, 3, 1][..])
        );
        assert_eq!((point.count, point.sum, point.attributes.len()), (6, Some(7.5), 1));
        assert!(matches!(metrics[2].data, Some(Data::Gauge(_))));
    }
}
