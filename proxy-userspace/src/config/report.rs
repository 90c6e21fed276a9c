//! What is wrong with a configuration, and how that is shown to its author.
//!
//! The readers of the sections collect [`Finding`]s; [`Report`] renders them with the lines they are about, in the
//! manner of rustc. It holds the text with its secrets masked, so no report can leak one. Nothing here knows
//! what a configuration means.

use std::{fmt, ops::Range, path::Path};

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// Bytes of the configuration that something is about.
pub(super) type Span = Range<usize>;

/// A report shows so many findings and counts the rest: a generated file may be wrong in every line.
const SHOWN: usize = 100;

/// Longer lines are not shown, in bytes: rendering takes time for each letter of a line, also of its hidden parts.
const LONGEST_LINE: usize = 8192;

/// One thing that is wrong, or looks wrong.
#[derive(Clone, Debug)]
pub(super) struct Finding(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    fatal: bool,
    title: String,
    span: Option<Span>,
    label: String,
    also: Vec<(Span, String)>,
    help: Option<String>,
}

impl Parts {
    fn label(&self) -> Option<&str> {
        Some(self.label.as_str()).filter(|label| !label.is_empty())
    }

    /// Every place that is shown, given the place of the finding itself.
    fn places<'a>(&'a self, span: &'a Span) -> impl Iterator<Item = &'a Span> {
        std::iter::once(span).chain(self.also.iter().map(|(span, _)| span))
    }
}

impl Finding {
    /// The configuration cannot be used.
    pub(super) fn error(title: impl Into<String>) -> Self {
        Self::new(true, title.into())
    }

    /// The configuration can be used, but probably does not do what its author thinks.
    pub(super) fn warning(title: impl Into<String>) -> Self {
        Self::new(false, title.into())
    }

    fn new(fatal: bool, title: String) -> Self {
        Self(Box::new(Parts {
            fatal,
            title,
            span: None,
            label: String::new(),
            also: Vec::new(),
            help: None,
        }))
    }

    /// Where it is.
    pub(super) fn at(mut self, span: &Span) -> Self {
        self.0.span = Some(span.clone());
        self
    }

    /// What is said at the place itself.
    pub(super) fn label(mut self, label: impl Into<String>) -> Self {
        self.0.label = label.into();
        self
    }

    /// Another place that has to do with it.
    pub(super) fn also(mut self, span: &Span, label: impl Into<String>) -> Self {
        self.0.also.push((span.clone(), label.into()));
        self
    }

    /// What would be right.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// One sentence for where there is no text to point at.
    pub(super) fn sentence(&self) -> String {
        [self.0.label.as_str(), self.0.help.as_deref().unwrap_or("")]
            .iter()
            .filter(|part| !part.is_empty())
            .fold(self.0.title.clone(), |sentence, part| {
                format!("{sentence}; {part}")
            })
    }
}

/// Collects what the readers of the sections find.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    /// The value, or nothing and a finding about it.
    pub(super) fn keep<T>(&mut self, result: Result<T, Finding>, span: &Span) -> Option<T> {
        result.map_err(|finding| self.push(finding.at(span))).ok()
    }

    pub(super) fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.0.fatal)
    }

    /// The errors among them, as a report on `text`, which holds no secret any more.
    pub(super) fn errors(self, origin: &Path, text: String) -> Report {
        self.report(origin, text, true)
    }

    /// The warnings among them, each rendered by itself.
    pub(super) fn warnings(self, origin: &Path, text: String) -> Vec<String> {
        let report = self.report(origin, text, false);
        report
            .findings
            .iter()
            .map(|finding| report.rendered(finding, &Renderer::plain()))
            .collect()
    }

    fn report(self, origin: &Path, text: String, fatal: bool) -> Report {
        let mut findings = self.0;
        findings.retain(|finding| finding.0.fatal == fatal);
        // The readers go from general to particular; the author reads from top to bottom.
        findings.sort_by_key(|finding| finding.0.span.as_ref().map(|span| span.start));
        let mut starts = vec![0];
        starts.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        Report {
            origin: origin.display().to_string(),
            text,
            starts,
            findings,
        }
    }
}

/// Every error of a configuration with the lines it is in. `Display` renders it without colours.
pub struct Report {
    origin: String,
    /// The configuration with its secrets masked.
    text: String,
    /// Where each line of `text` starts.
    starts: Vec<usize>,
    /// In the order of `text`.
    findings: Vec<Finding>,
}

impl Report {
    /// The report with colours, for a terminal.
    #[must_use]
    pub fn styled(&self) -> String {
        self.render(&Renderer::styled())
    }

    /// How many errors there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.findings.len()
    }

    fn render(&self, renderer: &Renderer) -> String {
        let mut parts: Vec<String> = self
            .findings
            .iter()
            .take(SHOWN)
            .map(|finding| self.rendered(finding, renderer))
            .collect();
        if let Some(more @ 1..) = self.findings.len().checked_sub(SHOWN) {
            parts.push(format!("error: {more} more errors in {}", self.origin));
        }
        parts.join("\n\n")
    }

    fn rendered(&self, Finding(finding): &Finding, renderer: &Renderer) -> String {
        let level = if finding.fatal {
            Level::ERROR
        } else {
            Level::WARNING
        };
        let title = level.primary_title(&finding.title);
        let group = match &finding.span {
            None => title.element(Origin::path(&self.origin)),
            Some(span) if self.is_long(finding, span) => title
                .element(self.position(span))
                .elements(finding.label().map(|label| Level::NOTE.message(label))),
            Some(span) => title.element(self.snippet(finding, span)),
        };
        let group: Group<'_> = match &finding.help {
            None => group,
            Some(help) => group.element(Level::HELP.message(help)),
        };
        renderer.render(&[group])
    }

    fn is_long(&self, finding: &Parts, span: &Span) -> bool {
        finding
            .places(span)
            .any(|place| self.line(self.line_of(place.start)).len() > LONGEST_LINE)
    }

    /// The place of a finding without the line itself.
    fn position(&self, span: &Span) -> Origin<'_> {
        let number = self.line_of(span.start);
        let before = self.line(number).start..self.clamped(span).start;
        let letters = self.text.get(before).unwrap_or_default().chars().count();
        Origin::path(&self.origin)
            .line(number + 1)
            .char_column(letters + 1)
    }

    /// The lines from the first to the last place of a finding; those between two places are folded.
    fn snippet<'a>(
        &'a self,
        finding: &'a Parts,
        span: &Span,
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let numbers = || finding.places(span).map(|place| self.line_of(place.start));
        let (first, last) = (numbers().min(), numbers().max());
        let (first, last) = (first.unwrap_or(0), last.unwrap_or(0));
        let lines = self.line(first).start..self.line(last).end;
        let within = |place: &Span| {
            let place = self.clamped(place);
            place.start - lines.start..place.end - lines.start
        };
        Snippet::source(self.text.get(lines.clone()).unwrap_or_default())
            .line_start(first + 1)
            .path(&self.origin)
            .annotation(
                AnnotationKind::Primary
                    .span(within(span))
                    .label(finding.label()),
            )
            .annotations(finding.also.iter().map(|(place, label)| {
                AnnotationKind::Context
                    .span(within(place))
                    .label(label.as_str())
            }))
    }

    /// The number of the line that holds a byte, from 0.
    fn line_of(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at).max(1) - 1
    }

    /// The bytes of a line, without its end.
    fn line(&self, number: usize) -> Span {
        let start = self.starts.get(number).copied().unwrap_or(self.text.len());
        let rest = self.text.get(start..).unwrap_or_default();
        start..start + rest.lines().next().map_or(0, str::len)
    }

    /// A span within one line: what goes over several is marked up to the end of its first.
    fn clamped(&self, span: &Span) -> Span {
        let line = self.line(self.line_of(span.start));
        let start = self.boundary(span.start.clamp(line.start, line.end));
        start..self.boundary(span.end.clamp(start, line.end))
    }

    fn boundary(&self, at: usize) -> usize {
        (0..=at)
            .rev()
            .find(|at| self.text.is_char_boundary(*at))
            .unwrap_or(0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.render(&Renderer::plain()))
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}
