use std::io::Read;

use csv::{ErrorKind, StringRecord};
use gpuzone_core::engine::{
    Amount, Demand, GpuKind, GpuRoom, HostDemand, HostRoom, MemoryAsk, ModelTable, NodeRoom,
    PodDemand, ShareMilli, TooManyGpus,
};
use gpuzone_core::{Exposure, GpuCount, MemoryBytes};
use serde::Deserialize;

/// A pod of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracePod {
    /// What it asks for.
    pub demand: PodDemand,
    /// Thousandths of GPUs that it asks for, over all of them.
    pub gpu_milli: u64,
    /// Who asks, where the trace says.
    pub tenant: Option<String>,
}

/// Nodes, empty, and the pods that arrive.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The nodes.
    pub nodes: Vec<NodeRoom>,
    /// The pods.
    pub pods: Vec<TracePod>,
}

/// Why tables are no trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Not the table that is expected.
    #[error("the table of {table} needs the columns {columns}{place}: {reason}")]
    Table {
        /// Nodes or pods.
        table: &'static str,
        /// Which columns it needs.
        columns: &'static str,
        /// The line and the column, as far as they are known; empty or "; line 2, column gpu".
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A number that makes no sense.
    #[error("the table of {table}, line {line}, column {column}: {reason}")]
    Value {
        /// Nodes or pods.
        table: &'static str,
        /// Counted from 1, with the head.
        line: u64,
        /// Its head.
        column: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Nothing in it.
    #[error("the table of {0} has no rows")]
    Empty(&'static str),
}

const NODES: (&str, &str) = ("nodes", "cpu_milli, memory_mib, gpu, model");
const PODS: (&str, &str) = ("pods", "cpu_milli, memory_mib, num_gpu, gpu_milli, gpu_spec");

#[derive(Deserialize)]
struct NodeRow {
    cpu_milli: u64,
    memory_mib: u64,
    gpu: usize,
    model: String,
}

#[derive(Deserialize)]
struct PodRow {
    cpu_milli: u64,
    memory_mib: u64,
    num_gpu: u32,
    gpu_milli: u16,
    #[serde(default)]
    gpu_spec: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
}

impl Trace {
    /// The trace of two tables in the format of openb. A `tenant` column of the pods is optional.
    ///
    /// `gpu_milli` becomes memory *and* time: each GPU is one of 1000 MiB, so that a thousandth is
    /// exact in both, and a pod takes as many MiB as thousandths.
    ///
    /// # Errors
    /// When a table cannot be read, is empty, or has a number that makes no sense.
    pub fn read(nodes: impl Read, pods: impl Read) -> Result<Self, TraceError> {
        let mut models = ModelTable::default();
        let nodes = rows(nodes, NODES, |row| node(&row, &mut models))?;
        let pods = rows(pods, PODS, |row| pod(row, &models))?;
        Ok(Self { nodes, pods })
    }

    /// Thousandths of GPUs that the nodes have.
    pub fn capacity(&self) -> u64 {
        self.nodes.iter().map(|node| node.gpus().len() as u64 * 1000).sum()
    }
}

/// The column that a value is wrong in, and why.
type Wrong = (&'static str, String);

fn rows<R: for<'a> Deserialize<'a>, T>(
    from: impl Read,
    (table, columns): (&'static str, &'static str),
    mut make: impl FnMut(R) -> Result<T, Wrong>,
) -> Result<Vec<T>, TraceError> {
    let mut reader = csv::Reader::from_reader(from);
    let unread = |head: &StringRecord, error: &csv::Error| {
        let (place, reason) = explained(head, error);
        TraceError::Table { table, columns, place, reason }
    };
    let head = reader.headers().map_err(|error| unread(&StringRecord::new(), &error))?.clone();
    let mut made = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| unread(&head, &error))?;
        let row = record.deserialize(Some(&head)).map_err(|error| unread(&head, &error))?;
        let line = record.position().map_or(0, csv::Position::line);
        let value = make(row);
        made.push(value.map_err(|(column, reason)| TraceError::Value {
            table,
            line,
            column,
            reason,
        })?);
    }
    if made.is_empty() { Err(TraceError::Empty(table)) } else { Ok(made) }
}

/// Where in a table an error is, and what it is.
fn explained(head: &StringRecord, error: &csv::Error) -> (String, String) {
    let line = |at: Option<&csv::Position>| {
        at.map(|at| format!("; line {}", at.line())).unwrap_or_default()
    };
    match error.kind() {
        ErrorKind::Deserialize { pos, err } => {
            let field = err.field().and_then(|field| usize::try_from(field).ok());
            let column = field.and_then(|field| head.get(field)).map(|name| {
                // It comes from the file and goes to a terminal.
                let name: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
                format!(", column {name}")
            });
            let place = line(pos.as_ref()) + column.as_deref().unwrap_or_default();
            (place, err.kind().to_string())
        }
        ErrorKind::UnequalLengths { pos, expected_len, len } => {
            (line(pos.as_ref()), format!("{len} values where the head has {expected_len}"))
        }
        ErrorKind::Utf8 { pos, .. } => (line(pos.as_ref()), "it is not UTF-8".to_owned()),
        _ => (line(error.position()), error.to_string()),
    }
}

fn node(row: &NodeRow, models: &mut ModelTable) -> Result<NodeRoom, Wrong> {
    let model = models.class_of(&row.model).map_err(|e| ("model", e.to_string()))?;
    let memory = MemoryBytes::mib(1000);
    let (exposure, healthy, numa, nvlink) = (Exposure::Mediated, true, None, None);
    let gpu = GpuRoom::empty(GpuKind { memory, model, exposure, healthy, numa, nvlink });
    let host = HostRoom { cpu_milli: row.cpu_milli, memory: MemoryBytes::mib(row.memory_mib) };
    // One more than there may be is enough to be refused, and no reason to run out of memory.
    let gpus = vec![gpu; row.gpu.min(NodeRoom::MOST_GPUS + 1)];
    NodeRoom::new(host, gpus).map_err(|_| ("gpu", TooManyGpus(row.gpu).to_string()))
}

fn pod(row: PodRow, models: &ModelTable) -> Result<TracePod, Wrong> {
    let host = HostDemand { cpu_milli: row.cpu_milli, memory: MemoryBytes::mib(row.memory_mib) };
    let gpu_milli = u64::from(row.num_gpu) * u64::from(row.gpu_milli);
    let tenant = row.tenant;
    if row.num_gpu == 0 {
        let demand = PodDemand { host, containers: vec![] };
        return Ok(TracePod { demand, gpu_milli: 0, tenant });
    }
    let gpus = GpuCount::new(row.num_gpu).map_err(|e| ("num_gpu", e.to_string()))?;
    let amount = match (row.gpu_milli, ShareMilli::new(row.gpu_milli)) {
        (0, _) | (_, None) => {
            return Err(("gpu_milli", format!("{} is not 1 to 1000", row.gpu_milli)));
        }
        (1000, _) => Amount::Whole,
        (milli, share) => {
            Amount::Part { memory: MemoryAsk::Bytes(MemoryBytes::mib(u64::from(milli))), share }
        }
    };
    let mut demand = Demand::new(gpus, amount);
    if let Some(spec) = row.gpu_spec.filter(|spec| !spec.is_empty()) {
        demand.models = models.set_of(spec.split('|'));
    }
    Ok(TracePod { demand: PodDemand { host, containers: vec![demand] }, gpu_milli, tenant })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = "sn,cpu_milli,memory_mib,gpu,model\na,64000,262144,2,P100\n";

    #[test]
    fn reads_openb_and_thousandths_are_exact() {
        let pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos\n\
                    p,6000,12288,1,463,P100|T4,LS\nq,1000,0,0,0,,BE\n";
        let trace = Trace::read(NODES.as_bytes(), pods.as_bytes()).unwrap();
        assert_eq!(
            (trace.capacity(), trace.pods[0].gpu_milli, trace.pods[1].gpu_milli),
            (2000, 463, 0)
        );
        let choice = gpuzone_core::engine::fit(&trace.nodes[0], &trace.pods[0].demand).unwrap();
        let mut node = trace.nodes[0].clone();
        node.take(&choice).unwrap();
        assert_eq!(node.gpus()[0].free_milli(), 537);
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let pods = |row: &str| format!("cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n{row}\n");
        for (row, part) in [
            ("1,1,1,1001,", "table of pods, line 2, column gpu_milli: 1001 is not"),
            ("1,1,65,10,", "not a number of GPUs"),
            ("1,-1,1,10,", "gpu_spec; line 2, column memory_mib: "),
        ] {
            let error = Trace::read(NODES.as_bytes(), pods(row).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(part), "{error} lacks {part}");
        }
        let nodes = "cpu_milli,memory_mib,gpu,model\n1,1,65,x\n";
        assert!(Trace::read(nodes.as_bytes(), pods("1,1,1,10,").as_bytes()).is_err());
        assert!(matches!(Trace::read(NODES.as_bytes(), "".as_bytes()), Err(TraceError::Empty(_))));
    }
}
