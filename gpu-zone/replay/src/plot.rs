use std::fmt::Write;

use crate::Figures;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 52.0;
const COLOURS: [&str; 4] = ["#0b6e4f", "#c1666b", "#4281a4", "#d4a017"];

/// A drawing of allocated against requested GPUs, both in per cent of `capacity` (thousandths of
/// GPUs), one line for each of the named figures.
pub fn svg(capacity: u64, lines: &[(&str, &Figures)]) -> String {
    let percent = |milli: u64| milli as f64 * 100.0 / capacity.max(1) as f64;
    let last = lines.iter().filter_map(|(_, figures)| figures.steps.last());
    let most = last.map(|step| percent(step.arrived)).fold(100.0, f64::max);
    let x = |value: f64| MARGIN + value / most * (WIDTH - 2.0 * MARGIN);
    let y = |value: f64| HEIGHT - MARGIN - value / 100.0 * (HEIGHT - 2.0 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         fill=\"white\"/>\n"
    );
    // Writing to a text cannot fail.
    for tick in (0..=5).map(|n| f64::from(n) * 20.0) {
        let _ = writeln!(
            out,
            "<line x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\
             <text x=\"8\" y=\"{1:.1}\">{tick}%</text>",
            WIDTH - MARGIN,
            y(tick),
        );
        let at = tick / 100.0 * most;
        let _ =
            writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\">{at:.0}%</text>", x(at), HEIGHT - 30.0);
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\">GPUs requested</text><text x=\"8\" y=\"20\">GPUs allocated</text>",
        WIDTH / 2.0 - 40.0,
        HEIGHT - 8.0
    );
    for (n, (name, figures)) in lines.iter().enumerate() {
        let colour = COLOURS.get(n % COLOURS.len()).copied().unwrap_or("black");
        let every = figures.steps.len().div_ceil(400).max(1);
        let points: Vec<String> = figures
            .steps
            .iter()
            .step_by(every)
            .chain(figures.steps.last())
            .map(|step| format!("{:.1},{:.1}", x(percent(step.arrived)), y(percent(step.placed))))
            .collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            MARGIN + 12.0,
            MARGIN + 16.0 * (n + 1) as f64,
            escaped(name),
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
