//! The results, for people.

pub(crate) mod html;
pub(crate) mod text;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{html, text};
    use crate::{
        comparison::compare,
        contender::Family,
        machine::Machine,
        metric::Metric,
        results::{Entrant, FORMAT, Missing, Results, Sample, WorkDone},
        summary::Spread,
        targets::{Bound, Target},
        work::Effort,
    };

    /// Two rounds, in which culvert is half as fast as no proxy.
    fn results() -> Results {
        let entrant = |name: &str, family| Entrant {
            name: name.to_owned(),
            family,
            version: "1".to_owned(),
            configuration: "a < b".to_owned(),
        };
        let sample = |contender: &str, round, rate| Sample {
            work: "rr-64-1".to_owned(),
            contender: contender.to_owned(),
            round,
            figures: BTreeMap::from([(Metric::Exchanges, rate), (Metric::P50, 17.5)]),
        };
        Results {
            format: FORMAT,
            machine: Machine::look(),
            pinned: true,
            relay_threads: 1,
            load_threads: 1,
            effort: Effort::QUICK,
            contenders: vec![
                entrant("direct", Family::Direct),
                entrant("culvert-copy", Family::Culvert),
            ],
            missing: vec![Missing {
                name: "nginx".to_owned(),
                reason: "no <script> of that name".to_owned(),
            }],
            works: vec![WorkDone {
                name: "rr-64-1".to_owned(),
                title: "64 bytes".to_owned(),
                headline: Metric::Exchanges,
            }],
            samples: vec![
                sample("direct", 0, 1000.0),
                sample("culvert-copy", 0, 500.0),
                sample("direct", 1, 3000.0),
                sample("culvert-copy", 1, 1500.0),
            ],
            intercept: Vec::new(),
            failures: Vec::new(),
            ways: Vec::new(),
            targets: vec![Target {
                work: "rr-64-1".to_owned(),
                contender: "culvert-sockmap".to_owned(),
                metric: Metric::Exchanges,
                base: Some("nginx".to_owned()),
                bound: Bound::AtLeast(1.05),
                measured: Spread {
                    median: 1.04,
                    lowest: 1.0,
                    highest: 1.25,
                },
            }],
            remarks: Vec::new(),
        }
    }

    #[test]
    fn all_reports_tell_the_same_ratio_and_what_is_missing() {
        let results = Results::from_json(&results().to_json().unwrap()).unwrap();
        let text = text::render(&results, None);
        let row = text.lines().find(|line| line.starts_with("culvert-copy"));
        let row = row.unwrap();
        assert!(row.contains(" 1,000  0.50 (0.50 .. 0.50)"), "{row}");
        assert!(text.contains("missing: nginx: no <script>"), "{text}");
        let page = html::render(&results, None);
        assert!(page.contains("0.50 (0.50 .. 0.50)"));
        assert!(page.contains("no &lt;script&gt; of that name"));
        let target = text.lines().find(|line| line.ends_with("missed")).unwrap();
        for part in [
            "rr-64-1",
            "culvert-sockmap",
            "of nginx",
            "at least 1.05",
            "1.04 (1.00 .. 1.25)",
        ] {
            assert!(target.contains(part), "{part} in {target}");
            assert!(page.contains(part), "{part}");
        }
    }

    #[test]
    fn the_page_runs_nothing_and_asks_nobody() {
        let page = html::render(&results(), None);
        for active in [
            "<script", "http:", "https:", "src=", "href=", "@import", "url(",
        ] {
            assert!(!page.contains(active), "{active}");
        }
        assert!(page.contains("prefers-color-scheme"));
    }

    #[test]
    fn a_run_compared_with_itself_has_not_changed() {
        let results = results();
        let comparison = compare(&results, &results);
        assert_eq!(comparison.changes.len(), 1);
        let text = text::render(&results, Some(&comparison));
        assert!(text.contains("+0 %"), "{text}");
        assert!(!text.contains("better"), "{text}");
        let page = html::render(&results, Some(&comparison));
        assert!(page.contains("+0 %"));
    }
}
