//! A loaded module: its code, and its variables in device memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use gpuzone_cuda_abi::CuResult;
use gpuzone_sim_ptx::Module as Code;

use crate::Answer;
use crate::abi::Word;
use crate::context::Context;
use crate::function::Function;
use crate::handles::{self, Object};
use crate::image;
use crate::memory::Kind;
use crate::work::{Pattern, Source, Width, Work};

pub(crate) struct Module {
    context: Arc<Context>,
    code: Code,
    globals: Vec<u64>,
    functions: Mutex<BTreeMap<String, Word>>,
}

/// Why an image was not loaded; the message is for the JIT's error log.
pub(crate) struct Refusal {
    pub(crate) result: CuResult,
    pub(crate) log: String,
}

impl From<CuResult> for Refusal {
    fn from(result: CuResult) -> Self {
        Self { result, log: result.to_string() }
    }
}

pub(crate) fn refuse(result: CuResult, log: impl Into<String>) -> Refusal {
    Refusal { result, log: log.into() }
}

impl Module {
    /// Loads PTX into `context`.
    pub(crate) fn load(context: &Arc<Context>, image: &[u8]) -> Result<Word, Refusal> {
        let device = context.gpu().config().compute_capability;
        let code = parse(image, device.major * 10 + device.minor)?;
        let (major, minor) = code.target_compute_capability();
        if (major, minor) > (device.major, device.minor) {
            let log = format!("the PTX is for sm_{major}{minor}; this simulated GPU has {device}");
            return Err(refuse(CuResult::NO_BINARY_FOR_GPU, log));
        }
        let mut module = Self {
            context: Arc::clone(context),
            code,
            globals: Vec::new(),
            functions: Mutex::default(),
        };
        if let Err(result) = module.place_globals() {
            module.free_globals();
            return Err(refuse(result, format!("placing the module's variables: {result}")));
        }
        Ok(handles::insert(|_| Object::Module(Arc::new(module))))
    }

    fn place_globals(&mut self) -> Answer {
        for global in self.code.globals() {
            let kind = if global.constant { Kind::Constant } else { Kind::Global };
            let address = self.context.memory().allocate(global.size.max(1), kind)?;
            self.globals.push(address);
            let pattern = Pattern { value: 0, width: Width::One };
            let bytes = global.size.max(1);
            self.context.submit(Work::Fill { at: address, bytes, pattern })?;
        }
        // A value may hold the address of a variable that comes later.
        for (index, address) in self.globals.iter().enumerate() {
            if let Some(value) = self.code.initial_value(index, &self.globals) {
                let from = Source::Staged(value);
                self.context.submit(Work::ToDevice { to: *address, from })?;
            }
        }
        self.context.wait(self.context.last())
    }

    fn free_globals(&self) {
        for address in &self.globals {
            let _ = self.context.submit(Work::Free { address: *address });
        }
    }

    /// Takes it and its functions out of the table of handles, and frees its variables once
    /// the work that was submitted is done.
    pub(crate) fn unload(self: &Arc<Self>, handle: Word) -> Answer {
        handles::remove(handle);
        handles::remove_functions(self);
        self.free_globals();
        self.context.wait(self.context.last())
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) fn code(&self) -> &Code {
        &self.code
    }

    /// Device address of each variable, in the order of the text.
    pub(crate) fn global_addresses(&self) -> &[u64] {
        &self.globals
    }

    /// Address and size of a variable.
    pub(crate) fn global(&self, name: &str) -> Answer<(u64, u64)> {
        let mut globals = self.code.globals().iter().zip(&self.globals);
        let found = globals.find(|(global, _)| global.name == name);
        found.map(|(global, address)| (*address, global.size)).ok_or(CuResult::NOT_FOUND)
    }

    /// The handle of a kernel; asked twice, it is the same.
    pub(crate) fn function(self: &Arc<Self>, name: &str) -> Answer<Word> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = functions.get(name) {
            return Ok(*handle);
        }
        let function = Arc::new(Function::new(Arc::clone(self), name)?);
        let handle = handles::insert(|_| Object::Function(function));
        functions.insert(name.to_owned(), handle);
        Ok(handle)
    }
}

fn parse(image: &[u8], capability: u32) -> Result<Code, Refusal> {
    let text = image::ptx_of(image, capability)?;
    Code::parse(&text).map_err(|error| {
        refuse(CuResult::INVALID_PTX, format!("line {}: {}", error.line, error.message))
    })
}
