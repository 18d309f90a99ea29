use comfy_table::{CellAlignment, Table, presets};
use gpuzone_core::Timestamp;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::text::{bytes, cell, duration, printable, ratio};
use super::{By, LeaseRow, Report, TenantRow, TotalRow, Usage};

/// Why a report was not put into its format.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The comma-separated form.
    #[error("the report cannot be written as CSV")]
    Csv(#[from] csv::Error),
    /// The JSON form.
    #[error("the report cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

const REFUSED: &str = "* refused allocations / unsupported calls / leases";
const SIMULATED: &str =
    "Simulated GPUs: the numbers above that are marked 'simulated' are not of real hardware.";

/// One value of a row, as CSV and JSON have it.
enum Field {
    Text(String),
    Integer(u128),
    Real(f64),
    Missing,
    Counts(Vec<(String, u128)>),
}

/// A row's values with their names, which are the keys in JSON and the head line in CSV.
struct Fields(Vec<(&'static str, Field)>);

impl Report {
    /// For people: a table, with a line below when simulated GPUs are in it.
    pub fn table(&self, by: By) -> String {
        let total = self.total();
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        match by {
            By::Tenant => {
                table.set_header(headings(&["TENANT", "GPUS", "LEASES"]));
                self.tenants.iter().for_each(|row| {
                    let first = vec![row.tenant.to_string(), row.backing.as_str().into()];
                    table.add_row(cells(first, true, &row.usage));
                });
                let first = vec!["total".into(), total.backing.as_str().into()];
                table.add_row(cells(first, true, &total.usage));
            }
            By::Lease => {
                table.set_header(headings(&["LEASE", "TENANT", "GPUS", "PROGRAM"]));
                self.leases.iter().for_each(|row| {
                    table.add_row(cells(lease_texts(row), false, &row.usage));
                });
                let first = vec!["total".into(), String::new(), total.backing.as_str().into()];
                let first = [first, vec![String::new()]].concat();
                table.add_row(cells(first, false, &total.usage));
            }
        }
        let texts = match by {
            By::Tenant => 2,
            By::Lease => 4,
        };
        for column in table.column_iter_mut().skip(texts) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let note =
            if total.backing.any_simulated() { format!("\n{SIMULATED}") } else { String::new() };
        format!("{}\n{REFUSED}{note}\n", table.trim_fmt())
    }

    /// For spreadsheets: comma-separated, a head line, no total. Column `backing` says which
    /// rows are of simulated GPUs.
    ///
    /// # Errors
    /// Never in practice: it is written to memory.
    pub fn csv(&self, by: By) -> Result<String, RenderError> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        // The head line is there even when no row is.
        let head = match by {
            By::Tenant => tenant_fields(None),
            By::Lease => lease_fields(None),
        };
        writer.write_record(head.0.iter().map(|(name, _)| name))?;
        let rows: Vec<Fields> = match by {
            By::Tenant => self.tenants.iter().map(|row| tenant_fields(Some(row))).collect(),
            By::Lease => self.leases.iter().map(|row| lease_fields(Some(row))).collect(),
        };
        for row in rows {
            writer.write_record(row.0.iter().map(|(_, field)| field.csv()))?;
        }
        let bytes = writer.into_inner().map_err(|error| csv::Error::from(error.into_error()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// For programs: one object with `rows` and their `total`. Amounts are whole numbers in
    /// the unit that the key names; those in hours are rounded for people.
    ///
    /// # Errors
    /// Never in practice: it is written to memory.
    pub fn json(&self, by: By) -> Result<String, RenderError> {
        let TotalRow { backing, usage } = self.total();
        let (name, rows): (_, Vec<Fields>) = match by {
            By::Tenant => {
                ("tenant", self.tenants.iter().map(|row| tenant_fields(Some(row))).collect())
            }
            By::Lease => ("lease", self.leases.iter().map(|row| lease_fields(Some(row))).collect()),
        };
        let mut total = vec![("backing", Field::Text(backing.as_str().into()))];
        total.extend(usage_fields(&usage));
        #[derive(serde::Serialize)]
        struct Document {
            by: &'static str,
            from: Option<String>,
            to: Option<String>,
            includes_simulated: bool,
            rows: Vec<Fields>,
            total: Fields,
        }
        let document = Document {
            by: name,
            from: self.filter.from.map(moment),
            to: self.filter.to.map(moment),
            includes_simulated: backing.any_simulated(),
            rows,
            total: Fields(total),
        };
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }
}

const USAGE_HEADINGS: [&str; 9] = [
    "TIME",
    "GPU-HOURS",
    "GIB-HOURS",
    "MEAN USED",
    "PEAK USED",
    "GPU BUSY",
    "LAUNCHES",
    "COPIED",
    "REFUSED*",
];

fn headings(first: &[&'static str]) -> Vec<&'static str> {
    first.iter().copied().chain(USAGE_HEADINGS).collect()
}

fn lease_texts(row: &LeaseRow) -> Vec<String> {
    let gpus: Vec<String> = row.gpus.iter().map(u32::to_string).collect();
    let gpus = format!("{} ({})", gpus.join(","), row.backing.as_str());
    vec![row.lease.to_string(), row.tenant.to_string(), gpus, printable(&row.program)]
}

fn cells(first: Vec<String>, with_leases: bool, usage: &Usage) -> Vec<String> {
    let mut cells = first;
    if with_leases {
        cells.push(usage.leases.to_string());
    }
    let refused = [usage.refused_memory, usage.refused_calls, usage.refused_leases];
    cells.extend([
        duration(usage.lease_nanoseconds),
        format!("{:.4}", gpu_hours(usage)),
        format!("{:.4}", gib_hours(usage)),
        bytes(usage.mean_used().get().into()),
        bytes(usage.peak_used.get().into()),
        duration(usage.busy_nanoseconds),
        usage.launches.to_string(),
        bytes(usage.bytes_to_device + usage.bytes_from_device + usage.bytes_on_device),
        refused.map(|count| count.to_string()).join("/"),
    ]);
    cells
}

fn gpu_hours(usage: &Usage) -> f64 {
    ratio(usage.reserved_gpu_nanoseconds, 3_600_000_000_000)
}

fn gib_hours(usage: &Usage) -> f64 {
    ratio(usage.reserved_byte_seconds, 3600 << 30)
}

fn usage_fields(usage: &Usage) -> Vec<(&'static str, Field)> {
    use Field::{Integer, Real};
    vec![
        ("leases", Integer(usage.leases)),
        ("lease_nanoseconds", Integer(usage.lease_nanoseconds)),
        ("reserved_gpu_nanoseconds", Integer(usage.reserved_gpu_nanoseconds)),
        ("reserved_gpu_hours", Real(gpu_hours(usage))),
        ("reserved_byte_seconds", Integer(usage.reserved_byte_seconds)),
        ("reserved_gib_hours", Real(gib_hours(usage))),
        ("mean_used_bytes", Integer(usage.mean_used().get().into())),
        ("peak_used_bytes", Integer(usage.peak_used.get().into())),
        ("busy_nanoseconds", Integer(usage.busy_nanoseconds)),
        ("launches", Integer(usage.launches)),
        ("bytes_to_device", Integer(usage.bytes_to_device)),
        ("bytes_from_device", Integer(usage.bytes_from_device)),
        ("bytes_on_device", Integer(usage.bytes_on_device)),
        ("refused_allocations", Integer(usage.refused_memory)),
        ("refused_calls", Integer(usage.refused_calls)),
        ("refused_leases", Integer(usage.refused_leases)),
    ]
}

/// The fields of `row`; without one, only their names mean anything.
fn tenant_fields(row: Option<&TenantRow>) -> Fields {
    let text = |value: Option<String>| value.map_or(Field::Missing, Field::Text);
    let mut fields = vec![
        ("tenant", text(row.map(|row| row.tenant.to_string()))),
        ("backing", text(row.map(|row| row.backing.as_str().into()))),
    ];
    fields.extend(usage_fields(&row.map(|row| row.usage).unwrap_or_default()));
    Fields(fields)
}

/// As [`tenant_fields`].
fn lease_fields(row: Option<&LeaseRow>) -> Fields {
    let text = |value: Option<String>| value.map_or(Field::Missing, Field::Text);
    let gpus = |row: &LeaseRow| row.gpus.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let refused = row.map(|row| row.refused_by_name.clone().into_iter().collect());
    let mut fields = vec![
        ("lease", text(row.map(|row| row.lease.to_string()))),
        ("tenant", text(row.map(|row| row.tenant.to_string()))),
        ("backing", text(row.map(|row| row.backing.as_str().into()))),
        ("gpu_indices", text(row.map(gpus))),
        ("program", text(row.map(|row| row.program.clone()))),
        ("start", text(row.map(|row| moment(row.start)))),
        ("end", text(row.and_then(|row| row.end).map(moment))),
        ("end_reason", text(row.and_then(|row| row.end_reason.clone()))),
    ];
    fields.extend(usage_fields(&row.map(|row| row.usage).unwrap_or_default()));
    fields.push(("refused_calls_by_name", Field::Counts(refused.unwrap_or_default())));
    Fields(fields)
}

fn moment(timestamp: Timestamp) -> String {
    let nanoseconds = i128::from(timestamp.nanoseconds());
    match jiff::Timestamp::from_nanosecond(nanoseconds) {
        Ok(moment) => moment.to_string(),
        Err(_) => nanoseconds.to_string(),
    }
}

impl Field {
    fn csv(&self) -> String {
        match self {
            Self::Text(text) => cell(text),
            Self::Integer(value) => value.to_string(),
            Self::Real(value) => format!("{value:.9}"),
            Self::Missing => String::new(),
            Self::Counts(counts) => {
                let counts = counts.iter().map(|(name, count)| format!("{name}={count}"));
                cell(&counts.collect::<Vec<_>>().join(" "))
            }
        }
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, field) in &self.0 {
            map.serialize_entry(name, field)?;
        }
        map.end()
    }
}

impl Serialize for Field {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Integer(value) => serializer.serialize_u128(*value),
            Self::Real(value) => serializer.serialize_f64(*value),
            Self::Missing => serializer.serialize_none(),
            Self::Counts(counts) => serializer.collect_map(counts.iter().map(|(k, v)| (k, v))),
        }
    }
}
