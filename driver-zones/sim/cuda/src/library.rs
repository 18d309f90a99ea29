//! Libraries: images that are loaded into whatever context asks for one of their kernels.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpuzone_cuda_abi::CuResult;

use crate::Answer;
use crate::abi::Word;
use crate::context::Context;
use crate::function::Function;
use crate::handles;
use crate::module::{Module, Refusal};

pub(crate) struct Library {
    image: Vec<u8>,
    /// Modules by the handles of their contexts, which are never given out again.
    modules: Mutex<BTreeMap<Word, Word>>,
}

/// A kernel of a library, in whatever context.
pub(crate) struct LibraryKernel {
    pub(crate) library: Arc<Library>,
    pub(crate) handle: Word,
    pub(crate) name: String,
}

impl Library {
    pub(crate) fn new(image: &[u8]) -> Arc<Self> {
        Arc::new(Self { image: image.to_vec(), modules: Mutex::default() })
    }

    fn modules(&self) -> MutexGuard<'_, BTreeMap<Word, Word>> {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its module in a context, and that one's handle.
    pub(crate) fn module_in(&self, context: &Arc<Context>) -> Result<(Word, Arc<Module>), Refusal> {
        let mut modules = self.modules();
        if let Some(handle) = modules.get(&context.handle) {
            return Ok((*handle, handles::module(*handle)?));
        }
        let handle = Module::load(context, &self.image)?;
        modules.insert(context.handle, handle);
        Ok((handle, handles::module(handle)?))
    }

    /// Unloads it from all contexts.
    pub(crate) fn unload(&self) -> Answer {
        let modules = std::mem::take(&mut *self.modules());
        let mut first = Ok(());
        for handle in modules.into_values() {
            // One whose context is gone is gone with it.
            if let Ok(module) = handles::module(handle) {
                first = first.and(module.unload(handle));
            }
        }
        first
    }
}

impl LibraryKernel {
    pub(crate) fn function_in(&self, context: &Arc<Context>) -> Answer<Arc<Function>> {
        handles::function(self.handle_in(context)?)
    }

    pub(crate) fn handle_in(&self, context: &Arc<Context>) -> Answer<Word> {
        let module = self.library.module_in(context).map_err(|refusal| refusal.result)?;
        module.1.function(&self.name)
    }
}

/// A kernel of a library; its handle stays the same.
pub(crate) fn kernel(library: &Arc<Library>, handle: Word, name: &str) -> Answer<Word> {
    let known =
        |kernel: &LibraryKernel| Arc::ptr_eq(&kernel.library, library) && kernel.name == name;
    if let Some(found) = handles::library_kernel(known) {
        return Ok(found);
    }
    if name.is_empty() {
        return Err(CuResult::NOT_FOUND);
    }
    let kernel = LibraryKernel { library: Arc::clone(library), handle, name: name.to_owned() };
    Ok(handles::insert(|_| handles::Object::Kernel(Arc::new(kernel))))
}
