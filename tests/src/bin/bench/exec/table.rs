//! What was measured, as a table.

use serde::Serialize;

use crate::contest::Times;

/// Where something was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// On this computer, over Unix sockets.
    Here,
    /// In a virtual machine.
    Machine,
}

/// What a figure is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    Seconds,
    Bytes,
}

/// One thing, done in several ways. The first is what the others are compared with.
#[derive(Debug, Serialize)]
pub(super) struct Measure {
    pub(super) place: Place,
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    pub(super) ways: Vec<Times>,
}

impl Measure {
    /// The median of a way, if it was measured.
    pub(super) fn median(&self, way: &str) -> Option<f64> {
        let found = self.ways.iter().find(|times| times.name == way);
        found.map(|times| times.median)
    }

    /// Adds runs of the same ways, and more ways.
    pub(super) fn add(&mut self, more: Vec<Times>) {
        for times in more {
            match self.ways.iter_mut().find(|known| known.name == times.name) {
                Some(known) => {
                    *known = Times::of(known.name, [known.runs.clone(), times.runs].concat())
                }
                None => self.ways.push(times),
            }
        }
    }

    /// The median of a way by that of the first.
    pub(super) fn ratio(&self, times: &Times) -> f64 {
        self.ways
            .first()
            .map_or(f64::NAN, |first| times.median / first.median)
    }
}

/// Prints all of a place, with what there is to say about it.
pub(super) fn print(measures: &[Measure], about: &str) {
    println!("{about}");
    measures.iter().for_each(print_one);
}

fn print_one(measure: &Measure) {
    let title = measure.name;
    println!("{title:<54} {:>10} {:>10} {:>8}", "median", "p99", "ratio");
    for times in &measure.ways {
        // Of fewer runs the slowest hundredth is the slowest one.
        let p99 = match times.runs.len() {
            100.. => measure.unit.text(times.p99),
            _ => "-".to_owned(),
        };
        let median = measure.unit.text(times.median);
        let ratio = measure.ratio(times);
        println!("    {:<50} {median:>10} {p99:>10} {ratio:>8.2}", times.name);
    }
}

impl Unit {
    /// For people.
    pub(super) fn text(self, figure: f64) -> String {
        match self {
            Self::Bytes => format!("{:.1} MiB", figure / 1024.0 / 1024.0),
            Self::Seconds if figure < 1e-3 => format!("{:.0} µs", figure * 1e6),
            Self::Seconds if figure < 1.0 => format!("{:.2} ms", figure * 1e3),
            Self::Seconds => format!("{figure:.2} s"),
        }
    }
}
