//! A page in Prometheus's text format, encoded by the `prometheus` crate from families that are created for
//! one reply: the values are the kernel's, and nothing here counts.

use prometheus::{
    TextEncoder,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

/// Label names and values.
pub(super) type Labels<'a> = Vec<(&'a str, &'a str)>;

/// The families so far.
#[derive(Debug, Default)]
pub(super) struct Page(Vec<MetricFamily>);

/// A metric has no name, or has the wrong type.
#[derive(Debug, thiserror::Error)]
#[error("the numbers cannot be written")]
pub(crate) struct CannotWrite(#[source] prometheus::Error);

impl Page {
    /// Metrics that can decrease.
    pub(super) fn gauges<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        self.family(MetricType::GAUGE, name, help, samples, |metric, value| {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        });
    }

    /// Metrics that only increase.
    pub(super) fn counters<'a>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) {
        self.family(MetricType::COUNTER, name, help, samples, |metric, value| {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        });
    }

    /// One number that goes up and down.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help, [(Labels::new(), value)]);
    }

    /// One number that only goes up.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.counters(name, help, [(Labels::new(), value)]);
    }

    fn family<'a>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<'a>, f64)>,
        set: impl Fn(&mut Metric, f64),
    ) {
        let metrics: Vec<Metric> = samples
            .into_iter()
            .map(|(labels, value)| {
                let mut metric = Metric::default();
                metric.set_label(labels.into_iter().map(label).collect());
                set(&mut metric, value);
                metric
            })
            .collect();
        // A family without metrics cannot be encoded, and is left out.
        if metrics.is_empty() {
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        self.0.push(family);
    }

    /// The text.
    ///
    /// # Errors
    ///
    /// [`CannotWrite`], for a family without a name.
    pub(super) fn write(&self) -> Result<String, CannotWrite> {
        TextEncoder::new()
            .encode_to_string(&self.0)
            .map_err(CannotWrite)
    }
}

fn label((name, value): (&str, &str)) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name(name.to_owned());
    label.set_value(value.to_owned());
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_help_type_and_numbers() {
        let mut page = Page::default();
        page.gauge("a", "Something.", 1.5);
        page.counters("b_total", "More.", [(vec![("x", "say \"\\\n\"")], 2.0)]);
        page.gauges("empty", "Nothing.", []);
        let expected = "# HELP a Something.\n# TYPE a gauge\na 1.5\n\
                        # HELP b_total More.\n# TYPE b_total counter\n\
                        b_total{x=\"say \\\"\\\\\\n\\\"\"} 2\n";
        assert_eq!(page.write().unwrap(), expected);
    }
}
