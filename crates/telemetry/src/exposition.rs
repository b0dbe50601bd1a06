//! The two text formats of a scrape, and which one a client wants.

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4, which everything reads.
    Classic,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

const OPEN_METRICS: &str = "application/openmetrics-text";

impl Format {
    /// What a client wants: OpenMetrics where its `Accept` header names it and prefers nothing else.
    pub fn from_accept(accept: &str) -> Self {
        let mut open_metrics = 0.0_f32;
        let mut classic = 0.0_f32;
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts.find_map(|part| part.strip_prefix("q=")?.trim().parse().ok());
            let quality: f32 = quality.unwrap_or(1.0);
            let place = match media.as_str() {
                OPEN_METRICS => &mut open_metrics,
                "text/plain" => &mut classic,
                _ => continue,
            };
            *place = place.max(quality);
        }
        if open_metrics > 0.0 && open_metrics >= classic {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    /// The header of an answer in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The metrics of all registries, one after the other.
    pub(crate) fn encode(self, registries: &[&Registry]) -> String {
        let mut text = String::new();
        for registry in registries {
            // Writing to a string cannot fail.
            let _ = encode_registry(&mut text, registry);
        }
        match self {
            Self::Classic => classic(&text),
            Self::OpenMetrics => {
                let _ = encode_eof(&mut text);
                text
            }
        }
    }
}

/// Rewrites OpenMetrics as the classic format: there a counter's family has the name of its samples,
/// with `_total`, and there are no units and no end mark.
fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + open_metrics.len() / 16);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // Its name is known with the type, which follows.
            help = rest.split_once(' ').map(|(_, help)| help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "unknown" { "untyped" } else { kind };
            let help = help.take().unwrap_or_default();
            text += &["# HELP ", name, suffix, " ", help, "\n"].concat();
            text += &["# TYPE ", name, suffix, " ", kind, "\n"].concat();
        } else if !line.starts_with('#') {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn clients_get_the_format_that_they_prefer() {
        // As Prometheus 3 asks, then 2, then curl.
        let newer = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                     application/openmetrics-text;version=0.0.1;q=0.4,\
                     text/plain;version=1.0.0;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert_eq!(Format::from_accept(newer), Format::OpenMetrics);
        let older = "application/openmetrics-text; version=1.0.0,text/plain;version=0.0.4;q=0.5";
        assert_eq!(Format::from_accept(older), Format::OpenMetrics);
        for accept in [
            "",
            "*/*",
            "text/plain",
            "text/html, application/json",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=0.1, text/plain;q=0.9",
        ] {
            assert_eq!(Format::from_accept(accept), Format::Classic, "{accept}");
        }
    }

    #[test]
    fn formats_differ_in_counters_units_and_the_end() {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        counter.inc_by(3);
        registry.register("c", "How many", counter);
        registry.register_with_unit("g", "How much", Unit::Seconds, Gauge::<i64>::default());
        assert_eq!(
            Format::Classic.encode(&[&registry]),
            "# HELP c_total How many.\n# TYPE c_total counter\nc_total 3\n\
             # HELP g_seconds How much.\n# TYPE g_seconds gauge\ng_seconds 0\n"
        );
        assert_eq!(
            Format::OpenMetrics.encode(&[&registry]),
            "# HELP c How many.\n# TYPE c counter\nc_total 3\n# HELP g_seconds How much.\n\
             # TYPE g_seconds gauge\n# UNIT g_seconds seconds\ng_seconds 0\n# EOF\n"
        );
    }
}
