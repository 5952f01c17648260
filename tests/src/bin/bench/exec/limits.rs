//! What is promised of commands, and whether it is kept.

use anyhow::Context;

use super::{
    names,
    table::{Measure, Place},
};
use crate::report::{Target, Verdict};

/// One promise, about the medians of two ways of one measure.
struct Limit {
    place: Place,
    measure: &'static str,
    ours: &'static str,
    than: &'static str,
    bound: Bound,
}

/// What is bounded.
enum Bound {
    /// The time of ours by that of the other, at most.
    Time(f64),
    /// The rate of ours by that of the other, at least: the other's time by ours.
    Rate(f64),
}

const LIMITS: [Limit; 8] = [
    here(names::TRUE, names::PLAIN, names::TOKIO, Bound::Time(2.0)),
    here(names::TRUE, names::TLS, names::TOKIO, Bound::Time(2.3)),
    here(names::FIFTY, names::PLAIN, names::TOKIO, Bound::Rate(0.6)),
    here(names::FIFTY, names::TLS, names::TOKIO, Bound::Rate(0.5)),
    here(names::GIB_OUT, names::PLAIN, names::SOCAT, Bound::Time(1.5)),
    here(names::GIB_OUT, names::TLS, names::SOCAT, Bound::Time(1.5)),
    here(names::GIB_IN, names::PLAIN, names::SOCAT, Bound::Time(1.5)),
    here(names::GIB_IN, names::TLS, names::SOCAT, Bound::Time(1.5)),
];

const fn here(
    measure: &'static str,
    ours: &'static str,
    than: &'static str,
    bound: Bound,
) -> Limit {
    Limit {
        place: Place::Here,
        measure,
        ours,
        than,
        bound,
    }
}

/// Compares what was measured at `place` with the limits there.
pub(super) fn check(measures: &[Measure], place: Place) -> anyhow::Result<Vec<Verdict>> {
    let limits = LIMITS.iter().filter(|limit| limit.place == place);
    limits.map(|limit| limit.check(measures)).collect()
}

impl Limit {
    fn check(&self, measures: &[Measure]) -> anyhow::Result<Verdict> {
        let what = format!("{}: {} by {}", self.measure, self.ours, self.than);
        let found = measures
            .iter()
            .find(|measure| (measure.place, measure.name) == (self.place, self.measure));
        let measure = found.with_context(|| format!("{what}: not measured"))?;
        let median = |way| {
            let median = measure.median(way);
            median.with_context(|| format!("{what}: {way} was not measured"))
        };
        let (ours, than) = (median(self.ours)?, median(self.than)?);
        let (figure, unit, target) = match self.bound {
            Bound::Time(most) => (ours / than, "of the time", Target::AtMost(most)),
            Bound::Rate(least) => (than / ours, "of the rate", Target::AtLeast(least)),
        };
        Ok(Verdict::new(what, figure, unit, target))
    }
}
