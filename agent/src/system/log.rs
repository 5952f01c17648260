//! The log on standard error, with a rate limit.
//!
//! A refused peer may connect thousands of times a second. So each callsite of a warning or an error may log
//! [`LINES`] lines in [`INTERVAL`]; further ones are counted, and the count is logged. Lines of other levels
//! are not limited.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    callsite::Identifier,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    fmt::MakeWriter,
    layer::{Context, Layer, SubscriberExt},
};

/// Maximum number of lines of one callsite in [`INTERVAL`].
const LINES: u32 = 10;

/// Interval of the limit and of the reports of suppressed lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// The rate limit of the log, and its level. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct LogLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Index in [`LEVELS`].
    level: AtomicUsize,
    callsites: Mutex<HashMap<Identifier, Callsite>>,
    /// Notified at the first suppressed line of a callsite since the last report.
    has_suppressed: Notify,
}

#[derive(Debug)]
struct Callsite {
    since: Instant,
    lines: u32,
    suppressed: u64,
    /// The message of a suppressed line.
    text: String,
}

/// Logs events of `level` and more severe ones to standard error, unless a subscriber is set already.
#[must_use]
pub(crate) fn log_to_stderr(level: Level) -> LogLimit {
    let (subscriber, limit) = subscriber(level, std::io::stderr);
    // Fails if a subscriber is set already.
    let _ = tracing::subscriber::set_global_default(subscriber);
    limit
}

fn subscriber<W>(level: Level, writer: W) -> (impl Subscriber + Send + Sync, LogLimit)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let limit = LogLimit(Arc::new(Shared {
        level: AtomicUsize::new(index(level)),
        callsites: Mutex::default(),
        has_suppressed: Notify::new(),
    }));
    let lines = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(writer)
        .with_ansi(false)
        .finish();
    (lines.with(limit.clone()), limit)
}

/// The levels, the most severe one first.
const LEVELS: [Level; 5] = [
    Level::ERROR,
    Level::WARN,
    Level::INFO,
    Level::DEBUG,
    Level::TRACE,
];

fn index(level: Level) -> usize {
    let found = LEVELS.iter().position(|other| *other == level);
    found.unwrap_or(LEVELS.len())
}

impl LogLimit {
    /// Changes the level.
    pub(crate) fn set_level(&self, level: Level) {
        self.0.level.store(index(level), Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }

    /// Logs the number of suppressed lines, every [`INTERVAL`] while there are any. Never returns.
    pub(crate) async fn report(&self) {
        loop {
            self.0.has_suppressed.notified().await;
            sleep(INTERVAL).await;
            self.report_once();
        }
    }

    fn callsites(&self) -> MutexGuard<'_, HashMap<Identifier, Callsite>> {
        let callsites = self.0.callsites.lock();
        callsites.unwrap_or_else(PoisonError::into_inner)
    }

    fn report_once(&self) {
        let mut counts = Vec::new();
        {
            self.callsites().retain(|_, callsite| {
                if callsite.suppressed > 0 {
                    counts.push((
                        callsite.text.clone(),
                        std::mem::take(&mut callsite.suppressed),
                    ));
                }
                callsite.since.elapsed() < INTERVAL
            });
        }
        for (text, more) in counts {
            tracing::warn!(more, "{text}");
        }
    }

    /// Whether the event is within the limit of its callsite.
    fn has_line(&self, event: &Event<'_>) -> bool {
        let now = Instant::now();
        let mut callsites = self.callsites();
        let callsite = callsites
            .entry(event.metadata().callsite())
            .or_insert_with(|| Callsite {
                since: now,
                lines: 0,
                suppressed: 0,
                text: String::new(),
            });
        if now.duration_since(callsite.since) >= INTERVAL {
            callsite.since = now;
            callsite.lines = 0;
        }
        if callsite.lines < LINES {
            callsite.lines += 1;
            return true;
        }
        callsite.suppressed += 1;
        if callsite.suppressed == 1 {
            self.0.has_suppressed.notify_one();
        }
        if callsite.text.is_empty() {
            event.record(&mut Message(&mut callsite.text));
        }
        false
    }
}

impl<S: Subscriber> Layer<S> for LogLimit {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        index(*metadata.level()) <= self.0.level.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let level = LEVELS.get(self.0.level.load(Ordering::Relaxed));
        level.copied().map(LevelFilter::from_level)
    }

    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        // Reports of suppressed lines are not limited.
        let metadata = event.metadata();
        *metadata.level() > Level::WARN
            || metadata.fields().field("more").is_some()
            || self.has_line(event)
    }
}

/// Records the message of an event, without its fields.
struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a string does not fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn take(&self) -> Vec<String> {
            let text = std::mem::take(&mut *self.0.lock().unwrap());
            let text = String::from_utf8(text).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lines_above_the_limit_of_a_callsite_are_counted() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, limit) = subscriber(Level::INFO, move || writer.clone());
        let _default = tracing::subscriber::set_default(subscriber);
        let refuse = |number| tracing::warn!(number, "refused");
        (0..1000).for_each(refuse);
        tracing::warn!("something else");
        (0..20).for_each(|number| tracing::info!(number, "a command starts"));
        let logged = lines.take();
        let with = |text: &str| logged.iter().filter(|line| line.contains(text)).count();
        assert_eq!(with("refused"), 10);
        assert_eq!(with("something else"), 1);
        assert_eq!(with("a command starts"), 20);
        tokio::time::advance(INTERVAL).await;
        limit.report_once();
        let logged = lines.take();
        assert_eq!(logged.len(), 1, "{logged:?}");
        assert!(logged[0].contains("refused more=990"), "{logged:?}");
        refuse(0);
        assert_eq!(lines.take().len(), 1);
        limit.report_once();
        assert!(lines.take().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn suppressed_lines_are_reported_once() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, limit) = subscriber(Level::INFO, move || writer.clone());
        let _default = tracing::subscriber::set_default(subscriber);
        let mut report = std::pin::pin!(limit.report());
        let refuse = || (0..20).for_each(|number| tracing::warn!(number, "refused"));
        for _ in 0..2 {
            tokio::time::timeout(3 * INTERVAL, &mut report)
                .await
                .unwrap_err();
            lines.take();
            refuse();
            tokio::time::timeout(3 * INTERVAL, &mut report)
                .await
                .unwrap_err();
            let logged = lines.take();
            assert_eq!(logged.len(), 11, "{logged:?}");
            assert!(logged[10].contains("more=10"), "{logged:?}");
        }
    }

    #[test]
    fn the_log_level_can_be_changed() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (subscriber, limit) = subscriber(Level::WARN, move || writer.clone());
        let _default = tracing::subscriber::set_default(subscriber);
        let say = || tracing::info!("a word");
        say();
        assert!(lines.take().is_empty());
        limit.set_level(Level::INFO);
        say();
        assert_eq!(lines.take().len(), 1);
    }
}
