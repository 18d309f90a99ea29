//! The older text format, for whoever does not ask for OpenMetrics: `curl`, `promtool`, old
//! scrapers.

/// An OpenMetrics page in Prometheus' older format: counters are named as their samples are, and
/// what that format does not know is left out.
pub(super) fn classic(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    // HELP stands before TYPE, which says whether its name is a counter's.
    let mut help: Option<(&str, &str)> = None;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(split) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let kind = if kind == "counter" || kind == "gauge" { kind } else { "untyped" };
            if let Some((of, help)) = help.take().filter(|(of, _)| *of == name) {
                text.push_str(&format!("# HELP {of}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with("# UNIT ") && line != "# EOF" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn split(text: &str) -> Option<(&str, &str)> {
    text.split_once(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_named_as_their_samples() {
        let page = "# HELP a_seconds Time.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
                    a_seconds_total{x=\"# HELP\"} 1.5\n# HELP b Now.\n# TYPE b gauge\nb 2\n# EOF\n";
        let text = "# HELP a_seconds_total Time.\n# TYPE a_seconds_total counter\n\
                    a_seconds_total{x=\"# HELP\"} 1.5\n# HELP b Now.\n# TYPE b gauge\nb 2\n";
        assert_eq!(classic(page), text);
    }
}
