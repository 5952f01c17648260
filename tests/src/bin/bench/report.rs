//! What came out, for people and for machines.

use serde::Serialize;

use crate::contest::Times;

/// A figure, and what it should be.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    /// What was measured.
    pub(crate) what: String,
    /// Ours, in `unit`.
    pub(crate) figure: f64,
    pub(crate) unit: &'static str,
    pub(crate) target: Target,
    pub(crate) holds: bool,
    /// What it was made from.
    pub(crate) times: Vec<Times>,
}

/// The bound of a figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Verdict {
    /// Compares a figure with its target.
    pub(crate) fn new(
        what: impl Into<String>,
        figure: f64,
        unit: &'static str,
        target: Target,
    ) -> Self {
        let holds = match target {
            Target::AtMost(most) => figure <= most,
            Target::AtLeast(least) => figure >= least,
        };
        Self {
            what: what.into(),
            figure,
            unit,
            target,
            holds,
            times: Vec::new(),
        }
    }
}

/// What ours is compared with.
#[derive(Clone, Copy)]
pub(crate) struct Against<'a> {
    pub(crate) theirs: &'a Times,
    /// A plain copy, which nothing can beat.
    pub(crate) floor: &'a Times,
}

impl Against<'_> {
    /// The median of ours by that of theirs.
    pub(crate) fn ratio(self, what: String, ours: &Times, most: f64) -> Verdict {
        let ratio = ours.median / self.theirs.median;
        let mut verdict = Verdict::new(what, ratio, "of OpenSSH's time", Target::AtMost(most));
        verdict.times = [ours, self.theirs, self.floor].map(Times::clone).into();
        verdict
    }
}

/// Prints one.
pub(crate) fn print(verdict: &Verdict) {
    let (word, target) = match verdict.target {
        Target::AtMost(most) => ("at most", most),
        Target::AtLeast(least) => ("at least", least),
    };
    let verdict_word = if verdict.holds { "holds" } else { "MISSED" };
    println!(
        "{}: {:.2} {}, target {word} {target:.2}: {verdict_word}",
        verdict.what, verdict.figure, verdict.unit
    );
    for times in &verdict.times {
        println!(
            "    {:<36} median {:>7.3}  min {:>7.3}  of {}",
            times.name,
            times.median,
            times.min,
            times.runs.len()
        );
    }
}
