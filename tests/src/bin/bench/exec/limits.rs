//! What is promised of commands, and whether it is kept.

use anyhow::Context;

use self::Bound::{Rate, Time};
use super::{
    names::{
        CLI_TLS, CLIENT_ON_LXD, FEW_LXD_ON_LXD, FIFTY, GIB_IN, GIB_OUT, HUNDRED, KEY, LONG_IN,
        LONG_OUT, LXD_ON_LXD, PLAIN, SOCAT, TLS, TOKIO, TRUE,
    },
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

const LIMITS: [Limit; 18] = [
    here(TRUE, PLAIN, TOKIO, Time(2.0)),
    here(TRUE, TLS, TOKIO, Time(2.3)),
    here(FIFTY, PLAIN, TOKIO, Rate(0.6)),
    here(FIFTY, TLS, TOKIO, Rate(0.5)),
    here(GIB_OUT, PLAIN, SOCAT, Time(1.5)),
    here(GIB_OUT, TLS, SOCAT, Time(1.5)),
    here(GIB_IN, PLAIN, SOCAT, Time(1.5)),
    here(GIB_IN, TLS, SOCAT, Time(1.5)),
    machine(TRUE, PLAIN, SOCAT, Time(1.0)),
    machine(TRUE, TLS, SOCAT, Time(1.0)),
    machine(TRUE, CLI_TLS, LXD_ON_LXD, Time(1.0 / 3.0)),
    machine(HUNDRED, TLS, FEW_LXD_ON_LXD, Time(0.2)),
    machine(LONG_OUT, PLAIN, SOCAT, Rate(0.7)),
    machine(LONG_OUT, TLS, CLIENT_ON_LXD, Rate(3.0)),
    machine(LONG_IN, PLAIN, SOCAT, Rate(0.7)),
    machine(LONG_IN, TLS, CLIENT_ON_LXD, Rate(3.0)),
    machine(KEY, PLAIN, SOCAT, Time(1.5)),
    machine(KEY, TLS, SOCAT, Time(1.5)),
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

const fn machine(
    measure: &'static str,
    ours: &'static str,
    than: &'static str,
    bound: Bound,
) -> Limit {
    Limit {
        place: Place::Machine,
        ..here(measure, ours, than, bound)
    }
}

/// Compares what was measured at `place` with the limits there.
pub(super) fn check(measures: &[Measure], place: Place) -> anyhow::Result<Vec<Verdict>> {
    let limits = LIMITS.iter().filter(|limit| limit.place == place);
    limits.map(|limit| limit.check(measures)).collect()
}

impl Limit {
    const fn name(&self) -> (Place, &'static str) {
        (self.place, self.measure)
    }

    fn check(&self, measures: &[Measure]) -> anyhow::Result<Verdict> {
        let place = match self.place {
            Place::Here => "without a VM",
            Place::Machine => "in a VM",
        };
        let what = format!(
            "{} {place}: {}, against {}",
            self.measure, self.ours, self.than
        );
        let found = measures
            .iter()
            .find(|measure| (measure.place, measure.name) == self.name());
        let measure = found.with_context(|| format!("{what}: not measured"))?;
        let median = |way| {
            let median = measure.median(way);
            median.with_context(|| format!("{what}: {way} was not measured"))
        };
        let (ours, than) = (median(self.ours)?, median(self.than)?);
        let (figure, unit, target) = match self.bound {
            Time(most) => (ours / than, "of the time", Target::AtMost(most)),
            Rate(least) => (than / ours, "of the rate", Target::AtLeast(least)),
        };
        Ok(Verdict::new(what, figure, unit, target))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{contest::Times, exec::table::Unit};

    /// `true` in the machine, where only the client without TLS is as fast as socat.
    fn measured() -> Measure {
        let ways = [
            (SOCAT, 1.0),
            (PLAIN, 1.0),
            (TLS, 1.1),
            (LXD_ON_LXD, 9.0),
            (CLI_TLS, 3.0),
        ];
        Measure {
            place: Place::Machine,
            name: TRUE,
            unit: Unit::Seconds,
            ways: ways
                .map(|(name, median)| Times::of(name, vec![median]))
                .into(),
        }
    }

    #[test]
    fn a_limit_holds_up_to_its_bound_and_no_further() {
        let measures = [measured()];
        let limits = LIMITS
            .iter()
            .filter(|limit| limit.name() == (Place::Machine, TRUE));
        let verdicts = limits.map(|limit| limit.check(&measures).unwrap());
        let holds: Vec<_> = verdicts.map(|verdict| verdict.holds).collect();
        assert_eq!(holds, [true, false, true]);
    }

    #[test]
    fn a_limit_on_what_was_not_measured_is_an_error() {
        check(&[measured()], Place::Machine).unwrap_err();
        check(&[], Place::Here).unwrap_err();
    }
}
