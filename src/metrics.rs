//! Every metric: its name, unit and help; and how they are counted and written down for Prometheus.
//!
//! What happens often is counted here, lock-free once a provider is known. What the store knows already is asked when
//! somebody scrapes ([`Page`]). No label names a user, and a provider is named as the configuration does: so the number
//! of series is bounded by what an admin wrote.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// What [`Page::finish`] writes (Prometheus' text exposition format).
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Stands for all providers that grants name and the configuration does not; no provider can be called so.
pub const NOT_CONFIGURED: &str = "(not configured)";

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only up, until a restart.
    Counter,
    /// Up and down.
    Gauge,
    /// How many observations were at most so large.
    Histogram,
}

impl Kind {
    /// Returns Prometheus' word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, with the unit and, for a counter, `_total` at its end.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What it counts in.
    pub unit: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:ident, $unit:literal, [$($label:literal),*], $help:literal;)*) => {
        $(#[doc = $help]
        pub const $constant: Metric = Metric {
            name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], help: $help,
        };)*
        /// All of them.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    BUILD_INFO = "freshd_build_info", Gauge, "1", ["version"],
        "Always 1; the label says which freshd runs.";
    START_TIME = "freshd_start_time_seconds", Gauge, "seconds", [],
        "When this process started, in seconds since the epoch.";
    ATTEMPTS = "freshd_attempts_total", Counter, "requests", ["provider", "outcome"],
        "Refresh requests by how they ended.";
    ATTEMPT_DURATION = "freshd_attempt_duration_seconds", Histogram, "seconds", ["provider"],
        "From sending a refresh request to its outcome.";
    LATENESS = "freshd_lateness_seconds", Histogram, "seconds", ["provider"],
        "How long after their due time scheduled refresh requests left.";
    TOKENS_SERVED = "freshd_tokens_served_total", Counter, "answers", ["provider"],
        "Access tokens given to apps and admins.";
    NEEDS_AUTHORIZATION = "freshd_needs_authorization_total", Counter, "grants", ["provider", "reason"],
        "Grants that went over to needing authorization.";
    RECOVERED = "freshd_recovered_total", Counter, "grants", ["provider"],
        "Grants that were refreshed or mended after failures.";
    GRANTS = "freshd_grants", Gauge, "grants", ["provider", "state", "reason"],
        "Grants by state, and by reason where the state has one.";
    GRANTS_FAILING = "freshd_grants_failing", Gauge, "grants", ["provider", "access_token"],
        "Active grants whose refreshes fail: none, those without an access token that lives, and lives, those that failed three times or more in a row and still have one.";
    SOONEST_EXPIRY = "freshd_soonest_expiry_timestamp_seconds", Gauge, "seconds", ["provider"],
        "When the first access token ends that is to be refreshed before its end, in seconds since the epoch; of the 1000 grants that are due first. In the past: the schedule is behind.";
    NEXT_DUE = "freshd_next_due_timestamp_seconds", Gauge, "seconds", [],
        "When the next grant is due, in seconds since the epoch.";
    IN_FLIGHT = "freshd_in_flight", Gauge, "requests", ["provider"],
        "Attempts under way.";
    PROVIDER_STATE = "freshd_provider_state", Gauge, "1", ["provider", "state"],
        "1 for the state that the provider is in: running, cooling-down, unreachable, paused, stopped.";
    STORE_FAILING = "freshd_store_failing", Gauge, "1", [],
        "1 while the store can't be written.";
    HELD_SETS = "freshd_held_sets", Gauge, "token sets", [],
        "Token sets that the disk refuses, served from memory.";
    SPILLED_SETS = "freshd_spilled_sets", Gauge, "token sets", [],
        "Token sets in the spill file, or meant to be.";
    DISK_FREE = "freshd_disk_free_bytes", Gauge, "bytes", [],
        "Free room on the file system of the state directory.";
    WRITER_QUEUE = "freshd_writer_queue", Gauge, "writes", [],
        "Changes that wait for the store's writer.";
    REVOCATIONS_WAITING = "freshd_revocations_waiting", Gauge, "revocations", [],
        "Revocations that no provider has answered yet.";
    EVENT_STREAMS = "freshd_event_streams", Gauge, "streams", [],
        "Streams of events that are open.";
    PEERS_REFUSED = "freshd_peers_refused_total", Counter, "connections", [],
        "Connections of peers that no rule admits.";
    OVER_QUOTA = "freshd_over_quota_total", Counter, "times", ["app", "quota", "outcome"],
        "Connections and requests over an app's quota, and users whose tokens it read, by what became of them.";
}

/// How a refresh request can end, as [`ATTEMPTS`] labels it.
pub const OUTCOMES: [&str; 6] = [
    "token-set",
    "refused-for-good",
    "refused-for-all",
    "refused-for-now",
    "unknown",
    "not-sent",
];

/// Upper bounds of [`ATTEMPT_DURATION`], in milliseconds: from a server next door to the longest usual deadline.
const DURATION_BOUNDS: [u64; 12] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000,
];
/// Upper bounds of [`LATENESS`], in milliseconds: from "on time" to an outage of a day.
const LATENESS_BOUNDS: [u64; 12] = [
    100, 500, 1_000, 5_000, 15_000, 60_000, 300_000, 900_000, 3_600_000, 14_400_000, 43_200_000,
    86_400_000,
];

/// Counts how long things took.
struct Histogram {
    bounds: [u64; 12],
    /// One more than bounds: what was longer than all of them.
    counts: [AtomicU64; 13],
    sum_millis: AtomicU64,
}

impl Histogram {
    fn new(bounds: [u64; 12]) -> Self {
        Histogram {
            bounds,
            counts: Default::default(),
            sum_millis: AtomicU64::new(0),
        }
    }

    fn observe(&self, length: Duration) {
        let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let bucket = self.bounds.partition_point(|bound| *bound < millis);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_millis.fetch_add(millis, Ordering::Relaxed);
    }
}

/// What is counted for one provider.
pub struct Numbers {
    attempts: [AtomicU64; OUTCOMES.len()],
    duration: Histogram,
    lateness: Histogram,
    served: AtomicU64,
    recovered: AtomicU64,
    /// By reason, each of them from the start: an increase from nothing is none to Prometheus.
    needs_authorization: Vec<(&'static str, AtomicU64)>,
}

impl Numbers {
    fn new(reasons: &[&'static str]) -> Self {
        Numbers {
            attempts: Default::default(),
            duration: Histogram::new(DURATION_BOUNDS),
            lateness: Histogram::new(LATENESS_BOUNDS),
            served: AtomicU64::new(0),
            recovered: AtomicU64::new(0),
            needs_authorization: reasons
                .iter()
                .map(|reason| (*reason, AtomicU64::new(0)))
                .collect(),
        }
    }

    fn counted_nothing(&self) -> bool {
        let dead = self.needs_authorization.iter().map(|(_, count)| count);
        let mut all = self
            .attempts
            .iter()
            .chain([&self.served, &self.recovered])
            .chain(dead);
        all.all(|count| count.load(Ordering::Relaxed) == 0)
    }

    /// Counts a request that ended as `outcome`, one of [`OUTCOMES`], after `took`.
    pub fn attempted(&self, outcome: &str, took: Duration) {
        if let Some(nth) = OUTCOMES.iter().position(|known| *known == outcome) {
            self.attempts[nth].fetch_add(1, Ordering::Relaxed);
        }
        self.duration.observe(took);
    }

    /// Counts a scheduled request that left so long after its due time.
    pub fn late(&self, by: Duration) {
        self.lateness.observe(by);
    }

    /// Counts an access token that was given away.
    pub fn served(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a grant that works again.
    pub fn recovered(&self) {
        self.recovered.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a grant that needs authorization from now on, for one of the registry's reasons.
    pub fn needs_authorization(&self, reason: &str) {
        let counts = self.needs_authorization.iter();
        for (_, count) in counts.filter(|(known, _)| *known == reason) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Everything that is counted as it happens.
pub struct Registry {
    providers: RwLock<BTreeMap<String, Arc<Numbers>>>,
    /// Of providers that are not in the configuration.
    others: Arc<Numbers>,
    reasons: Vec<&'static str>,
    peers_refused: AtomicU64,
}

impl Registry {
    /// Makes one without a provider; `reasons` are those for which a grant can need authorization.
    pub fn new(reasons: Vec<&'static str>) -> Self {
        Registry {
            providers: RwLock::default(),
            others: Arc::new(Numbers::new(&reasons)),
            reasons,
            peers_refused: AtomicU64::new(0),
        }
    }

    /// Names the configured providers. One that is known keeps its numbers, and one that leaves the configuration
    /// keeps its series: a counter that vanishes and comes back would look like a restart.
    pub fn configure<'a>(&self, names: impl Iterator<Item = &'a String>) {
        let mut providers = self
            .providers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        for name in names {
            if !providers.contains_key(name) {
                providers.insert(name.clone(), Arc::new(Numbers::new(&self.reasons)));
            }
        }
    }

    /// Returns a provider's numbers; those of [`NOT_CONFIGURED`] for one that no configuration has named.
    pub fn of(&self, provider: &str) -> Arc<Numbers> {
        let providers = self
            .providers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        providers.get(provider).unwrap_or(&self.others).clone()
    }

    /// Returns how a label names this provider.
    pub fn label<'a>(&self, provider: &'a str) -> &'a str {
        let providers = self
            .providers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        match providers.contains_key(provider) {
            true => provider,
            false => NOT_CONFIGURED,
        }
    }

    /// Counts a connection of a peer that no rule admits.
    pub fn peer_refused(&self) {
        self.peers_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes all of it.
    pub fn write(&self, page: &mut Page) {
        let mut all: Vec<(String, Arc<Numbers>)> = self
            .providers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(name, numbers)| (name.clone(), numbers.clone()))
            .collect();
        // Of no interest to most, and in the legend of each panel.
        if !self.others.counted_nothing() {
            all.push((NOT_CONFIGURED.to_owned(), self.others.clone()));
        }
        for (provider, numbers) in &all {
            for (outcome, count) in OUTCOMES.iter().zip(&numbers.attempts) {
                page.add(&ATTEMPTS, &[provider, outcome], read(count));
            }
            page.histogram(&ATTEMPT_DURATION, provider, &numbers.duration);
            page.histogram(&LATENESS, provider, &numbers.lateness);
            page.add(&TOKENS_SERVED, &[provider], read(&numbers.served));
            page.add(&RECOVERED, &[provider], read(&numbers.recovered));
            for (reason, count) in &numbers.needs_authorization {
                page.add(&NEEDS_AUTHORIZATION, &[provider, reason], read(count));
            }
        }
        page.add(&PEERS_REFUSED, &[], read(&self.peers_refused));
    }
}

fn read(count: &AtomicU64) -> f64 {
    count.load(Ordering::Relaxed) as f64
}

/// One answer to a scrape. Samples may come in any order; each metric's stand together in the text.
#[derive(Default)]
pub struct Page {
    samples: BTreeMap<&'static str, String>,
}

impl Page {
    /// Adds one sample; `labels` are the values of the metric's labels, in their order.
    pub fn add(&mut self, metric: &Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        let pairs = metric.labels.iter().copied().zip(labels.iter().copied());
        self.line(metric, "", pairs, value);
    }

    fn histogram(&mut self, metric: &Metric, provider: &str, histogram: &Histogram) {
        let mut seen = 0.0;
        let bounds = histogram
            .bounds
            .iter()
            .map(|millis| (*millis as f64 / 1000.0).to_string());
        let bounds = bounds.chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            seen += read(count);
            let labels = [("provider", provider), ("le", &bound)];
            self.line(metric, "_bucket", labels.into_iter(), seen);
        }
        let labels = [("provider", provider)];
        let sum = read(&histogram.sum_millis) / 1000.0;
        self.line(metric, "_sum", labels.into_iter(), sum);
        // The buckets' own total: it must agree with them while others count.
        self.line(metric, "_count", labels.into_iter(), seen);
    }

    fn line<'a>(
        &mut self,
        metric: &Metric,
        suffix: &str,
        labels: impl Iterator<Item = (&'a str, &'a str)>,
        value: f64,
    ) {
        let text = self.samples.entry(metric.name).or_default();
        let labels: Vec<String> = labels
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let _ = match labels.is_empty() {
            true => writeln!(text, "{}{suffix} {value}", metric.name),
            false => writeln!(
                text,
                "{}{suffix}{{{}}} {value}",
                metric.name,
                labels.join(",")
            ),
        };
    }

    /// Returns the text, in the order of [`ALL`]. A metric without a sample is left out.
    pub fn finish(self) -> String {
        let mut text = String::new();
        for metric in ALL {
            if let Some(samples) = self.samples.get(metric.name) {
                let (name, kind) = (metric.name, metric.kind.name());
                let _ = writeln!(text, "# HELP {name} {}", metric.help);
                let _ = writeln!(text, "# TYPE {name} {kind}");
                text.push_str(samples);
            }
        }
        text
    }
}

/// A label's value as the format wants it.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(registry: &Registry) -> String {
        let mut page = Page::default();
        registry.write(&mut page);
        page.finish()
    }

    #[test]
    fn names_say_the_unit_and_counters_end_in_total() {
        for metric in ALL {
            let name = metric.name;
            assert!(name.starts_with("freshd_"), "{name}");
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}"
            );
            assert_eq!(
                name.contains("_seconds"),
                metric.unit == "seconds",
                "{name}"
            );
            assert!(
                metric.help.ends_with('.') && !metric.help.contains('\n'),
                "{name}"
            );
            for label in metric.labels {
                assert!(!["user", "account", "namespace"].contains(label), "{name}");
            }
        }
    }

    #[test]
    fn what_is_counted_is_on_the_page_once_and_under_its_metric() {
        let registry = Registry::new(vec!["lost-rotation", "expired"]);
        registry.configure(["box".to_owned()].iter());
        registry
            .of("box")
            .attempted("token-set", Duration::from_millis(26));
        registry
            .of("box")
            .attempted("not-sent", Duration::from_secs(90));
        registry.of("box").late(Duration::ZERO);
        registry.of("box").served();
        registry.of("box").needs_authorization("lost-rotation");
        let page = page(&registry);
        for line in [
            "# TYPE freshd_attempts_total counter",
            "freshd_attempts_total{provider=\"box\",outcome=\"token-set\"} 1",
            "freshd_attempts_total{provider=\"box\",outcome=\"unknown\"} 0",
            "freshd_attempt_duration_seconds_bucket{provider=\"box\",le=\"0.025\"} 0",
            "freshd_attempt_duration_seconds_bucket{provider=\"box\",le=\"0.05\"} 1",
            "freshd_attempt_duration_seconds_bucket{provider=\"box\",le=\"60\"} 1",
            "freshd_attempt_duration_seconds_bucket{provider=\"box\",le=\"+Inf\"} 2",
            "freshd_attempt_duration_seconds_sum{provider=\"box\"} 90.026",
            "freshd_attempt_duration_seconds_count{provider=\"box\"} 2",
            "freshd_lateness_seconds_bucket{provider=\"box\",le=\"0.1\"} 1",
            "freshd_tokens_served_total{provider=\"box\"} 1",
            "freshd_needs_authorization_total{provider=\"box\",reason=\"lost-rotation\"} 1",
            "freshd_needs_authorization_total{provider=\"box\",reason=\"expired\"} 0",
        ] {
            assert_eq!(
                page.lines().filter(|l| *l == line).count(),
                1,
                "{line}\n{page}"
            );
        }
    }

    #[test]
    fn a_provider_outside_the_configuration_makes_no_series_of_its_own() {
        let registry = Registry::new(vec!["lost-rotation", "expired"]);
        registry.configure(["box".to_owned()].iter());
        assert!(!page(&registry).contains("(not configured)"));
        registry.of("stray").served();
        let text = page(&registry);
        assert!(!text.contains("stray"), "{text}");
        assert!(text.contains("freshd_tokens_served_total{provider=\"(not configured)\"} 1"));
        assert_eq!(
            (registry.label("box"), registry.label("stray")),
            ("box", NOT_CONFIGURED)
        );
        registry.of("box").served();
        registry.configure(["acme".to_owned()].iter());
        assert!(page(&registry).contains("freshd_tokens_served_total{provider=\"box\"} 1"));
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.add(&BUILD_INFO, &["a\"b\\c\nd"], 1.0);
        assert!(page.finish().contains("{version=\"a\\\"b\\\\c\\nd\"} 1"));
    }
}
