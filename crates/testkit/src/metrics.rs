//! Reading `/metrics`, Prometheus' text format.

/// One scrape.
#[derive(Debug, Clone)]
pub struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Comments and lines that are no samples are passed over.
    pub fn parse(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Metrics { samples: lines.filter_map(parse_sample).collect() }
    }

    /// The sum over all label sets of `name`; `None` where there is no such sample.
    pub fn sum(&self, name: &str) -> Option<f64> {
        let mut samples = self.samples.iter().filter(|sample| sample.name == name).peekable();
        samples.peek()?;
        Some(samples.map(|sample| sample.value).sum())
    }

    /// Values of `label` on the samples of `name` that are not 0.
    pub fn labels(&self, name: &str, label: &str) -> Vec<&str> {
        self.samples
            .iter()
            .filter(|sample| sample.name == name && sample.value != 0.0)
            .flat_map(|sample| &sample.labels)
            .filter(|(key, _)| key == label)
            .map(|(_, value)| value.as_str())
            .collect()
    }
}

/// `name value` or `name{key="value",…} value`. Label values with escapes keep them: our tests
/// look at numbers.
fn parse_sample(line: &str) -> Option<Sample> {
    let (head, labels, value) = if let Some((name, rest)) = line.split_once('{') {
        let (labels, value) = rest.rsplit_once('}')?;
        (name, labels, value)
    } else {
        let (name, value) = line.split_once(' ')?;
        (name, "", value)
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    let mut pairs = vec![];
    let mut rest = labels;
    while let Some((key, after)) = rest.split_once("=\"") {
        let (value, after) = after.split_once('"')?;
        pairs.push((key.trim_start_matches(',').trim().to_owned(), value.to_owned()));
        rest = after;
    }
    Some(Sample { name: head.to_owned(), labels: pairs, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP oarlock_blocks Blocks.\n# TYPE oarlock_blocks gauge\n\
        oarlock_blocks{state=\"used\"} 3\noarlock_blocks{state=\"cached\"} 4.5\n\
        oarlock_requests_total 7\n\
        oarlock_worker_info{rank=\"0\",pid=\"123\"} 1\n\
        oarlock_worker_info{rank=\"1\",pid=\"99\"} 0\n# EOF\n";

    #[test]
    fn samples_are_summed_and_labels_listed() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.sum("oarlock_blocks"), Some(7.5));
        assert_eq!(metrics.sum("oarlock_requests_total"), Some(7.0));
        assert_eq!(metrics.sum("oarlock_block"), None);
        assert_eq!(metrics.labels("oarlock_worker_info", "pid"), ["123"]);
        assert_eq!(metrics.labels("oarlock_blocks", "state"), ["used", "cached"]);
    }
}
