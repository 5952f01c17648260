//! Writes metrics in Prometheus's text format. The `prometheus` crate encodes families that are built for
//! one reply; its registry is not used, because the kernel counts.

use std::io;

use prometheus::{
    TextEncoder,
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};

/// Label names and values.
pub(super) type Labels<'a> = Vec<(&'a str, &'a str)>;

/// The metric families, in the order of their output.
#[derive(Debug, Default)]
pub(super) struct Page(Vec<MetricFamily>);

/// Metrics with a common name prefix and a sample for each item.
pub(super) struct Section<'p, 'a, T> {
    page: &'p mut Page,
    prefix: &'static str,
    items: Vec<(Labels<'a>, T)>,
}

/// A metric family that has no help text yet.
pub(super) struct Family<'p>(Option<&'p mut MetricFamily>);

impl Page {
    /// Metrics whose names start with `prefix`, with one sample for each of `items`.
    pub(super) fn section<'a, T>(
        &mut self,
        prefix: &'static str,
        items: impl IntoIterator<Item = (Labels<'a>, T)>,
    ) -> Section<'_, 'a, T> {
        Section {
            page: self,
            prefix,
            items: items.into_iter().collect(),
        }
    }

    /// Metrics whose names start with `prefix`, with one sample without labels.
    pub(super) fn single<T>(&mut self, prefix: &'static str, item: T) -> Section<'_, 'static, T> {
        self.section(prefix, [(Labels::new(), item)])
    }

    /// A gauge of value 1 that carries information in its labels.
    pub(super) fn info(&mut self, name: &'static str, labels: Labels<'_>, help: &str) {
        self.section(name, [(labels, ())])
            .gauge("", |()| 1.0)
            .help(help);
    }

    /// The text. Families without samples are left out: they cannot be encoded.
    ///
    /// # Errors
    ///
    /// A family without a name.
    pub(super) fn write(mut self) -> io::Result<String> {
        self.0.retain(|family| !family.get_metric().is_empty());
        TextEncoder::new()
            .encode_to_string(&self.0)
            .map_err(io::Error::other)
    }
}

impl<T> Section<'_, '_, T> {
    /// A metric that can decrease.
    pub(super) fn gauge(&mut self, name: &str, value: impl Fn(&T) -> f64) -> Family<'_> {
        self.family(name, MetricType::GAUGE, |metric, item| {
            let mut gauge = Gauge::default();
            gauge.set_value(value(item));
            metric.set_gauge(gauge);
        })
    }

    /// A metric that only increases.
    pub(super) fn counter(&mut self, name: &str, value: impl Fn(&T) -> f64) -> Family<'_> {
        self.family(name, MetricType::COUNTER, |metric, item| {
            let mut counter = Counter::default();
            counter.set_value(value(item));
            metric.set_counter(counter);
        })
    }

    fn family(
        &mut self,
        name: &str,
        kind: MetricType,
        set: impl Fn(&mut Metric, &T),
    ) -> Family<'_> {
        let metrics = self.items.iter().map(|(labels, item)| {
            let mut metric = Metric::default();
            metric.set_label(labels.iter().map(label).collect());
            set(&mut metric, item);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(format!("{}{name}", self.prefix));
        family.set_field_type(kind);
        family.set_metric(metrics.collect());
        let families = &mut self.page.0;
        families.push(family);
        Family(families.last_mut())
    }
}

impl Family<'_> {
    /// Sets the help text: one sentence.
    pub(super) fn help(self, text: &str) {
        if let Some(family) = self.0 {
            family.set_help(text.to_owned());
        }
    }
}

fn label((name, value): &(&str, &str)) -> LabelPair {
    let mut label = LabelPair::default();
    label.set_name((*name).to_owned());
    label.set_value((*value).to_owned());
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_have_help_type_and_escaped_labels() {
        let mut page = Page::default();
        page.single("", 1.5).gauge("a", |n| *n).help("Something.");
        page.section("b_", [(vec![("x", "say \"\\\n\"")], 2.0)])
            .counter("total", |n| *n)
            .help("More.");
        page.section::<f64>("empty", [])
            .gauge("", |n| *n)
            .help("Nothing.");
        let expected = "# HELP a Something.\n# TYPE a gauge\na 1.5\n\
                        # HELP b_total More.\n# TYPE b_total counter\n\
                        b_total{x=\"say \\\"\\\\\\n\\\"\"} 2\n";
        assert_eq!(page.write().unwrap(), expected);
    }
}
