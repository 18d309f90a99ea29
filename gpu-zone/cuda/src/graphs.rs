//! Graphs: lists of work that this process keeps and posts when they are launched. The worker
//! knows nothing of them: each node is checked, when it runs, as any other call is.

use std::collections::BTreeSet;

use gpuzone_cuda_abi::CuResult;
use gpuzone_cuda_abi::rows::Rows;
use gpuzone_wire::spec::{ContextId, EventId, FunctionId, LaunchSetting, StreamId};

use crate::ffi::Answer;
use crate::tables::HashMap;

/// A kernel with all that it is launched with.
#[derive(Clone)]
pub(crate) struct KernelWork {
    pub(crate) function: FunctionId,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) settings: Vec<LaunchSetting>,
    pub(crate) arguments: Vec<u8>,
}

/// Rows of memory that are set to a value.
#[derive(Clone, Copy)]
pub(crate) struct FillWork {
    pub(crate) target: u64,
    pub(crate) pitch: usize,
    pub(crate) value: u32,
    pub(crate) width: u32,
    pub(crate) count: usize,
    pub(crate) rows: usize,
}

/// What a node does.
#[derive(Clone)]
pub(crate) enum Work {
    Kernel(KernelWork),
    /// Bytes from one address to another, whatever they are of.
    Copy {
        target: u64,
        source: u64,
        bytes: usize,
    },
    Rows(Rows),
    Fill(FillWork),
    /// A function of the program, by its number.
    Host(u64),
    Empty,
    Record(EventId),
    Wait(EventId),
    /// Another graph's work, in order.
    Child(Vec<(u32, Work)>),
}

impl Work {
    /// `CUgraphNodeType`.
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Self::Kernel(_) => 0,
            Self::Copy { .. } | Self::Rows(_) => 1,
            Self::Fill(_) => 2,
            Self::Host(_) => 3,
            Self::Child(_) => 4,
            Self::Empty => 5,
            Self::Wait(_) => 6,
            Self::Record(_) => 7,
        }
    }
}

pub(crate) struct Node {
    pub(crate) graph: u32,
    pub(crate) after: BTreeSet<u32>,
    pub(crate) work: Work,
    /// The node that it was cloned from.
    pub(crate) origin: Option<u32>,
    /// A kernel's arguments and where each is, as the program was last told them.
    pub(crate) told: (Vec<u8>, Vec<usize>),
}

/// What was instantiated: work in an order that keeps what comes after what.
pub(crate) struct Executable {
    /// With what it was instantiated, as it is told.
    pub(crate) flags: u64,
    pub(crate) work: Vec<(u32, Work)>,
    /// Nodes that do nothing when it is launched.
    pub(crate) disabled: BTreeSet<u32>,
}

/// A stream that records instead of working.
struct Capture {
    graph: u32,
    id: u64,
    is_origin: bool,
    /// Whether the graph is the program's own.
    is_given: bool,
    /// What the next node comes after.
    tips: BTreeSet<u32>,
    context: ContextId,
}

/// All of a process.
#[derive(Default)]
pub(crate) struct Graphs {
    pub(crate) nodes: HashMap<u32, Node>,
    /// Nodes of each graph, in the order in which they came.
    pub(crate) graphs: HashMap<u32, Vec<u32>>,
    pub(crate) executable: HashMap<u32, Executable>,
    captures: HashMap<StreamId, Capture>,
    /// Where in a capture an event was recorded.
    events: HashMap<EventId, (u64, BTreeSet<u32>)>,
    made: u64,
}

/// More nodes than any program has.
const MOST_NODES: usize = 1 << 20;

impl Graphs {
    pub(crate) fn graph(&self, id: u32) -> Answer<&Vec<u32>> {
        self.graphs.get(&id).ok_or(CuResult::INVALID_VALUE)
    }

    pub(crate) fn node(&self, id: u32) -> Answer<&Node> {
        self.nodes.get(&id).ok_or(CuResult::INVALID_VALUE)
    }

    /// Adds a node that comes after others of its graph.
    pub(crate) fn add(&mut self, id: u32, graph: u32, after: BTreeSet<u32>, work: Work) -> Answer {
        self.expect_nodes_of(graph, &after)?;
        if self.nodes.len() >= MOST_NODES {
            return Err(CuResult::OUT_OF_MEMORY);
        }
        self.graphs.get_mut(&graph).ok_or(CuResult::INVALID_VALUE)?.push(id);
        self.nodes.insert(id, Node { graph, after, work, origin: None, told: Default::default() });
        Ok(())
    }

    pub(crate) fn remove_node(&mut self, id: u32) -> Answer {
        let node = self.nodes.remove(&id).ok_or(CuResult::INVALID_VALUE)?;
        if let Some(nodes) = self.graphs.get_mut(&node.graph) {
            nodes.retain(|other| *other != id);
        }
        self.nodes.values_mut().for_each(|other| {
            other.after.remove(&id);
        });
        Ok(())
    }

    pub(crate) fn remove_graph(&mut self, id: u32) -> Answer {
        let nodes = self.graphs.remove(&id).ok_or(CuResult::INVALID_VALUE)?;
        nodes.iter().for_each(|node| {
            self.nodes.remove(node);
        });
        Ok(())
    }

    /// The nodes of a graph in an order that keeps what comes after what.
    pub(crate) fn sorted(&self, graph: u32) -> Answer<Vec<u32>> {
        let nodes = self.graph(graph)?;
        let mut waits: HashMap<u32, usize> = HashMap::default();
        let mut followers: HashMap<u32, Vec<u32>> = HashMap::default();
        for id in nodes {
            let after = &self.node(*id)?.after;
            waits.insert(*id, after.len());
            after.iter().for_each(|before| followers.entry(*before).or_default().push(*id));
        }
        let mut ready: std::collections::VecDeque<u32> =
            nodes.iter().copied().filter(|id| waits.get(id) == Some(&0)).collect();
        let mut sorted = Vec::with_capacity(nodes.len());
        while let Some(id) = ready.pop_front() {
            sorted.push(id);
            for follower in followers.remove(&id).unwrap_or_default() {
                if let Some(left) = waits.get_mut(&follower) {
                    *left -= 1;
                    if *left == 0 {
                        ready.push_back(follower);
                    }
                }
            }
        }
        // A circle has no order.
        if sorted.len() == nodes.len() { Ok(sorted) } else { Err(CuResult::INVALID_VALUE) }
    }

    /// A graph's work in order.
    pub(crate) fn work_of(&self, graph: u32) -> Answer<Vec<(u32, Work)>> {
        let sorted = self.sorted(graph)?;
        sorted.into_iter().map(|id| Ok((id, self.node(id)?.work.clone()))).collect()
    }

    pub(crate) fn is_capturing(&self, stream: StreamId) -> bool {
        !self.captures.is_empty() && self.captures.contains_key(&stream)
    }

    /// Begins a capture into a graph, of which the first node comes after `tips`.
    pub(crate) fn begin(
        &mut self,
        stream: StreamId,
        context: ContextId,
        graph: u32,
        tips: BTreeSet<u32>,
    ) -> Answer {
        if self.is_capturing(stream) {
            return Err(CuResult::ILLEGAL_STATE);
        }
        self.expect_nodes_of(graph, &tips)?;
        self.made += 1;
        let is_given = self.graphs.contains_key(&graph);
        self.graphs.entry(graph).or_default();
        let (id, is_origin) = (self.made, true);
        self.captures.insert(stream, Capture { graph, id, is_origin, is_given, tips, context });
        Ok(())
    }

    /// What a capturing stream records next comes after these nodes: after no others, or after those
    /// from before, too.
    pub(crate) fn set_tips(
        &mut self,
        stream: StreamId,
        tips: BTreeSet<u32>,
        keeps: bool,
    ) -> Answer {
        let capture = self.captures.get(&stream).ok_or(CuResult::ILLEGAL_STATE)?;
        self.expect_nodes_of(capture.graph, &tips)?;
        if let Some(capture) = self.captures.get_mut(&stream) {
            if !keeps {
                capture.tips.clear();
            }
            capture.tips.extend(tips);
        }
        Ok(())
    }

    fn expect_nodes_of(&self, graph: u32, nodes: &BTreeSet<u32>) -> Answer {
        let of_graph = |node: &u32| self.nodes.get(node).is_some_and(|node| node.graph == graph);
        if nodes.iter().all(of_graph) { Ok(()) } else { Err(CuResult::INVALID_VALUE) }
    }

    /// Records work on a capturing stream, as the node with this number.
    pub(crate) fn record(&mut self, stream: StreamId, node: u32, work: Work) -> Answer {
        let capture = self.captures.get(&stream).ok_or(CuResult::ILLEGAL_STATE)?;
        let (graph, after) = (capture.graph, capture.tips.clone());
        self.add(node, graph, after, work)?;
        if let Some(capture) = self.captures.get_mut(&stream) {
            capture.tips = BTreeSet::from([node]);
        }
        Ok(())
    }

    /// An event is recorded on a stream: whether it is a part of a capture.
    pub(crate) fn note_event(&mut self, event: EventId, stream: StreamId) -> bool {
        if let Some(capture) = self.captures.get(&stream) {
            self.events.insert(event, (capture.id, capture.tips.clone()));
            true
        } else {
            self.events.remove(&event);
            false
        }
    }

    /// A stream waits for an event: whether that is a part of a capture, which the stream joins.
    pub(crate) fn join(
        &mut self,
        stream: StreamId,
        event: EventId,
        context: ContextId,
    ) -> Answer<bool> {
        let Some((id, tips)) = self.events.get(&event).cloned() else {
            // Work that is not captured cannot be waited for in a capture.
            let isolated = self.is_capturing(stream);
            return if isolated { Err(CuResult::STREAM_CAPTURE_ISOLATION) } else { Ok(false) };
        };
        let origin = self.captures.values().find(|capture| capture.id == id);
        let graph = origin.ok_or(CuResult::CAPTURED_EVENT)?.graph;
        match self.captures.get_mut(&stream) {
            Some(capture) if capture.id == id => capture.tips.extend(tips),
            Some(_) => return Err(CuResult::STREAM_CAPTURE_MERGE),
            None => {
                let (is_origin, is_given) = (false, false);
                let joined = Capture { graph, id, is_origin, is_given, tips, context };
                self.captures.insert(stream, joined);
            }
        }
        Ok(true)
    }

    /// Ends the capture that began on a stream; answers its graph.
    pub(crate) fn end(&mut self, stream: StreamId) -> Answer<u32> {
        let capture = self.captures.get(&stream).ok_or(CuResult::ILLEGAL_STATE)?;
        if !capture.is_origin {
            return Err(CuResult::STREAM_CAPTURE_UNMATCHED);
        }
        let (id, graph, tips) = (capture.id, capture.graph, capture.tips.clone());
        let is_given = capture.is_given;
        let before = self.ancestors(&tips);
        let of_this = self.captures.values().filter(|capture| capture.id == id);
        let joined = of_this.flat_map(|capture| &capture.tips).all(|tip| before.contains(tip));
        self.captures.retain(|_, capture| capture.id != id);
        if joined {
            return Ok(graph);
        }
        if !is_given {
            self.remove_graph(graph)?;
        }
        Err(CuResult::STREAM_CAPTURE_UNJOINED)
    }

    /// These nodes and all that they come after.
    fn ancestors(&self, tips: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let mut rest: Vec<u32> = tips.iter().copied().collect();
        while let Some(id) = rest.pop() {
            if found.insert(id) {
                rest.extend(self.nodes.get(&id).into_iter().flat_map(|node| &node.after));
            }
        }
        found
    }

    /// Of a stream's capture: its number, its graph, and what comes next comes after.
    pub(crate) fn capture(&self, stream: StreamId) -> Option<(u64, u32, Vec<u32>)> {
        let capture = self.captures.get(&stream)?;
        Some((capture.id, capture.graph, capture.tips.iter().copied().collect()))
    }

    /// A context is gone, and what its streams recorded.
    pub(crate) fn forget_context(&mut self, context: ContextId) {
        self.captures.retain(|_, capture| capture.context != context);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: ContextId = ContextId(1);

    #[test]
    fn nodes_come_after_what_they_come_after() {
        let mut graphs = Graphs::default();
        graphs.graphs.insert(1, Vec::new());
        for (id, after) in [(10, vec![]), (11, vec![10]), (12, vec![10]), (13, vec![11, 12])] {
            graphs.add(id, 1, after.into_iter().collect(), Work::Empty).expect("added");
        }
        assert_eq!(graphs.sorted(1), Ok(vec![10, 11, 12, 13]));
        let unknown = graphs.add(14, 1, BTreeSet::from([99]), Work::Empty);
        assert_eq!(unknown, Err(CuResult::INVALID_VALUE));
        graphs.nodes.get_mut(&10).expect("there").after.insert(13);
        assert_eq!(graphs.sorted(1), Err(CuResult::INVALID_VALUE), "a circle");
        graphs.remove_node(13).expect("removed");
        assert_eq!(graphs.sorted(1), Ok(vec![10, 11, 12]));
    }

    #[test]
    fn a_capture_takes_streams_along_and_wants_them_back() {
        let (main, side, event) = (StreamId(20), StreamId(21), EventId(30));
        for is_joined in [true, false] {
            let mut graphs = Graphs::default();
            graphs.begin(main, CONTEXT, 1, BTreeSet::new()).expect("begun");
            graphs.record(main, 10, Work::Empty).expect("recorded");
            assert!(graphs.note_event(event, main));
            assert_eq!(graphs.join(side, event, CONTEXT), Ok(true));
            graphs.record(side, 11, Work::Empty).expect("recorded");
            assert_eq!(graphs.end(side), Err(CuResult::STREAM_CAPTURE_UNMATCHED));
            if is_joined {
                assert!(graphs.note_event(event, side));
                assert_eq!(graphs.join(main, event, CONTEXT), Ok(true));
                assert_eq!(graphs.end(main), Ok(1));
                assert_eq!(graphs.sorted(1), Ok(vec![10, 11]));
            } else {
                assert_eq!(graphs.end(main), Err(CuResult::STREAM_CAPTURE_UNJOINED));
            }
            assert!(!graphs.is_capturing(side));
        }
    }

    #[test]
    fn what_is_not_captured_is_not_waited_for() {
        let (stream, event) = (StreamId(20), EventId(30));
        let mut graphs = Graphs::default();
        assert_eq!(graphs.join(stream, event, CONTEXT), Ok(false));
        graphs.begin(stream, CONTEXT, 1, BTreeSet::new()).expect("begun");
        assert_eq!(graphs.begin(stream, CONTEXT, 2, BTreeSet::new()), Err(CuResult::ILLEGAL_STATE));
        let isolated = graphs.join(stream, event, CONTEXT);
        assert_eq!(isolated, Err(CuResult::STREAM_CAPTURE_ISOLATION));
    }
}
