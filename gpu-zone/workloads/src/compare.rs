//! Two outputs of `gpuzone-workload figures`, the driver's own and the mediated path's, side by
//! side, each figure against its goal.

use std::fmt::Write;

use serde_json::Value;

/// What a mediated figure is held against.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// At most so much.
    AtMost(f64),
    /// At most so many times another figure of the same output.
    AtMostTimes(f64, &'static str),
    /// At most so many times the driver's own.
    AtMostOfDirect(f64),
    /// At least so many times the driver's own.
    AtLeastOfDirect(f64),
    /// Nothing: it is shown.
    Shown,
}

/// A figure and its goal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// Its name in the output.
    pub key: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    /// What it is held against.
    pub goal: Goal,
}

const fn figure(key: &'static str, what: &'static str, goal: Goal) -> Figure {
    Figure { key, what, goal }
}

/// All figures with goals.
pub const FIGURES: [Figure; 9] = [
    figure("post_launch_ns", "post a launch, ns", Goal::AtMost(300.0)),
    figure("call_awake_ns", "call, both awake, ns", Goal::AtMostTimes(3.0, "bare_spin_ns")),
    figure("call_parked_ns", "call, worker parked, ns", Goal::AtMostTimes(2.0, "bare_futex_ns")),
    figure("launches_ns_each", "many launches, ns each", Goal::AtMostOfDirect(1.1)),
    figure("pinned_to_device_gb_s", "pinned to device, GB/s", Goal::AtLeastOfDirect(0.95)),
    figure("pinned_to_host_gb_s", "pinned to host, GB/s", Goal::AtLeastOfDirect(0.95)),
    figure("pageable_to_device_gb_s", "pageable to device, GB/s", Goal::AtLeastOfDirect(0.85)),
    figure("pageable_to_host_gb_s", "pageable to host, GB/s", Goal::AtLeastOfDirect(0.85)),
    figure("workload_ms", "SAXPY + matrix + softmax, ms", Goal::AtMostOfDirect(1.02)),
];

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What it is.
    pub what: String,
    /// The driver's own.
    pub direct: Option<f64>,
    /// The mediated path's.
    pub mediated: Option<f64>,
    /// What it is held against, and what it makes of that.
    pub verdict: String,
    /// Whether the goal was reached, where there is one.
    pub met: Option<bool>,
}

fn number(of: &Value, key: &str) -> Option<f64> {
    of[key].as_f64().filter(|number| number.is_finite())
}

fn row(figure: Figure, direct: &Value, mediated: &Value) -> Row {
    let (own, ours) = (number(direct, figure.key), number(mediated, figure.key));
    let ratio = own.zip(ours).map(|(own, ours)| ours / own);
    let shown = |ratio: Option<f64>| ratio.map_or("?".to_owned(), |ratio| format!("{ratio:.2}"));
    // A figure that is missing is no goal reached.
    let within = |value: Option<f64>, most: f64| Some(value.is_some_and(|value| value <= most));
    let (verdict, met) = match figure.goal {
        Goal::AtMost(most) => (format!("at most {most}"), within(ours, most)),
        Goal::AtMostTimes(most, other) => {
            let times = ours.zip(number(mediated, other)).map(|(ours, other)| ours / other);
            (format!("{} of at most {most} times {other}", shown(times)), within(times, most))
        }
        Goal::AtMostOfDirect(most) => {
            (format!("{} of at most {most} times direct", shown(ratio)), within(ratio, most))
        }
        Goal::AtLeastOfDirect(least) => {
            let met = Some(ratio.is_some_and(|ratio| ratio >= least));
            (format!("{} of at least {least} times direct", shown(ratio)), met)
        }
        Goal::Shown => (format!("{} times direct", shown(ratio)), None),
    };
    Row { what: figure.what.to_owned(), direct: own, mediated: ours, verdict, met }
}

/// The table of two outputs; matrix products stand behind what has goals.
pub fn rows(direct: &Value, mediated: &Value) -> Vec<Row> {
    let known = FIGURES.into_iter().map(|figure| row(figure, direct, mediated));
    let keys = mediated.as_object().into_iter().flatten().map(|(key, _)| key);
    let products = keys.filter(|key| key.starts_with("matmul_")).map(|key| {
        let (direct, mediated) = (&direct[key], &mediated[key]);
        let of = |value: &Value| serde_json::json!({ "matmul": value });
        let shown = row(figure("matmul", "", Goal::Shown), &of(direct), &of(mediated));
        Row { what: key.replace('_', " "), ..shown }
    });
    known.chain(products).collect()
}

/// The rows as a table in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text =
        "| what | direct | mediated | goal | |\n| --- | ---: | ---: | --- | --- |\n".to_owned();
    for row in rows {
        let shown =
            |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.2}"));
        let met = match row.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "",
        };
        let (direct, mediated) = (shown(row.direct), shown(row.mediated));
        // Writing into a string cannot fail.
        let _ =
            writeln!(text, "| {} | {direct} | {mediated} | {} | {met} |", row.what, row.verdict);
    }
    text
}

/// Outputs of the same program, each figure's median.
pub fn median(outputs: &[Value]) -> Value {
    let first = outputs.first().and_then(Value::as_object).cloned().unwrap_or_default();
    let middle = |key: String| {
        let mut values: Vec<f64> =
            outputs.iter().filter_map(|output| number(output, &key)).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.get(values.len() / 2).copied();
        (key, serde_json::json!(middle))
    };
    first.into_iter().map(|(key, _)| middle(key)).collect::<serde_json::Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn goals_are_judged_and_what_is_missing_is_missed() {
        let direct = json!({ "launches_ns_each": 100.0, "pinned_to_host_gb_s": 10.0 });
        let mediated = json!({
            "launches_ns_each": 109.0, "pinned_to_host_gb_s": 9.0, "post_launch_ns": 300.0,
            "call_awake_ns": 301.0, "bare_spin_ns": 100.0, "matmul_64_ms": 2.0
        });
        let rows = rows(&direct, &mediated);
        let met = |what: &str| rows.iter().find(|row| row.what.starts_with(what)).unwrap().met;
        assert_eq!(met("many launches"), Some(true));
        assert_eq!(met("pinned to host"), Some(false));
        assert_eq!(met("post a launch"), Some(true));
        assert_eq!(met("call, both awake"), Some(false));
        assert_eq!(met("SAXPY"), Some(false), "it was not measured");
        assert_eq!(met("matmul 64 ms"), None);
        assert!(table(&rows).contains("| 109.00 | 1.09 of at most 1.1 times direct | met |"));
    }

    #[test]
    fn the_middle_of_each_figure_is_taken() {
        let outputs = [1.0, 9.0, 2.0].map(|value| json!({ "a": value, "b": -value }));
        assert_eq!(median(&outputs), json!({ "a": 2.0, "b": -2.0 }));
        assert_eq!(median(&[]), json!({}));
    }
}
