//! The table of everything a program holds a handle of. A handle is a number that was given
//! out and is never given out again: what is not in the table is not a handle.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

use gpuzone_cuda_abi::CuResult;

use crate::Answer;
use crate::abi::Word;
use crate::api::Linking;
use crate::context::Context;
use crate::driver::current;
use crate::event::{Event, Stream};
use crate::function::Function;
use crate::library::{Library, LibraryKernel};
use crate::module::Module;
use crate::pool::Pool;

/// What a handle stands for.
#[derive(Clone)]
pub(crate) enum Object {
    Context(Arc<Context>),
    Module(Arc<Module>),
    Function(Arc<Function>),
    Stream(Arc<Stream>),
    Event(Arc<Event>),
    Link(Arc<Linking>),
    Pool(Arc<Pool>),
    Library(Arc<Library>),
    Kernel(Arc<LibraryKernel>),
}

struct Table {
    objects: HashMap<Word, Object>,
    last: Word,
}

/// Where handles begin. Looks like no address: a program that reads through one faults.
const FIRST: Word = 0x0510_0000_0000_0000;
const STEP: Word = 16;

static TABLE: LazyLock<RwLock<Table>> =
    LazyLock::new(|| RwLock::new(Table { objects: HashMap::new(), last: FIRST }));

/// Enters what `make` returns for the new handle.
pub(crate) fn insert(make: impl FnOnce(Word) -> Object) -> Word {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    table.last += STEP;
    let handle = table.last;
    table.objects.insert(handle, make(handle));
    handle
}

pub(crate) fn remove(handle: Word) -> Option<Object> {
    TABLE.write().unwrap_or_else(PoisonError::into_inner).objects.remove(&handle)
}

/// Takes everything out that belongs to a context, and the context.
pub(crate) fn remove_context(context: &Arc<Context>) {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let is_of = |object: &Object| owner(object).is_some_and(|owner| Arc::ptr_eq(owner, context));
    table.objects.retain(|_, object| !is_of(object));
}

/// The context that an object goes with.
fn owner(object: &Object) -> Option<&Arc<Context>> {
    match object {
        Object::Context(context) => Some(context),
        Object::Module(module) => Some(module.context()),
        Object::Function(function) => Some(function.module().context()),
        Object::Stream(stream) => Some(stream.context()),
        Object::Event(event) => Some(event.context()),
        Object::Link(linking) => Some(linking.link.context()),
        Object::Pool(_) | Object::Library(_) | Object::Kernel(_) => None,
    }
}

/// Takes the functions of a module out.
pub(crate) fn remove_functions(module: &Arc<Module>) {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    table.objects.retain(|_, object| match object {
        Object::Function(function) => !Arc::ptr_eq(function.module(), module),
        _ => true,
    });
}

/// Whether the number was a handle once, and its object is gone.
pub(crate) fn was_given_out(handle: Word) -> bool {
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    handle > FIRST && handle <= table.last && (handle - FIRST).is_multiple_of(STEP)
}

pub(crate) fn get(handle: Word) -> Option<Object> {
    TABLE.read().unwrap_or_else(PoisonError::into_inner).objects.get(&handle).cloned()
}

/// All contexts of this process.
pub(crate) fn contexts() -> Vec<Arc<Context>> {
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let contexts = table.objects.values().filter_map(|object| match object {
        Object::Context(context) => Some(Arc::clone(context)),
        _ => None,
    });
    contexts.collect()
}

/// The handle of a module.
pub(crate) fn module_handle(module: &Arc<Module>) -> Option<Word> {
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let mut objects = table.objects.iter();
    objects.find_map(|(handle, object)| match object {
        Object::Module(found) if Arc::ptr_eq(found, module) => Some(*handle),
        _ => None,
    })
}

macro_rules! typed {
    ($($name:ident: $kind:ident, $type:ty;)*) => {$(
        pub(crate) fn $name(handle: Word) -> Answer<Arc<$type>> {
            match get(handle) {
                Some(Object::$kind(object)) => Ok(object),
                _ => Err(CuResult::INVALID_HANDLE),
            }
        }
    )*};
}
typed! {
    module: Module, Module;
    stream: Stream, Stream;
    event: Event, Event;
    link: Link, Linking;
    pool: Pool, Pool;
    library: Library, Library;
    kernel: Kernel, LibraryKernel;
}

/// The context of a handle; one that is gone says so.
pub(crate) fn context(handle: Word) -> Answer<Arc<Context>> {
    match get(handle) {
        Some(Object::Context(context)) => Ok(context),
        Some(_) => Err(CuResult::INVALID_CONTEXT),
        None if was_given_out(handle) => Err(CuResult::CONTEXT_IS_DESTROYED),
        None => Err(CuResult::INVALID_CONTEXT),
    }
}

/// A function, or what a library's kernel is in the current context: programs pass either.
pub(crate) fn function(handle: Word) -> Answer<Arc<Function>> {
    match get(handle) {
        Some(Object::Function(function)) => Ok(function),
        Some(Object::Kernel(kernel)) => kernel.function_in(&current()?),
        _ => Err(CuResult::INVALID_HANDLE),
    }
}

/// The handle of a library's kernel that is the wanted one.
pub(crate) fn library_kernel(is_wanted: impl Fn(&LibraryKernel) -> bool) -> Option<Word> {
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    table.objects.iter().find_map(|(handle, object)| match object {
        Object::Kernel(kernel) if is_wanted(kernel) => Some(*handle),
        _ => None,
    })
}

/// Takes the kernels of a library out.
pub(crate) fn remove_kernels(library: &Arc<Library>) {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    table.objects.retain(|_, object| match object {
        Object::Kernel(kernel) => !Arc::ptr_eq(&kernel.library, library),
        _ => true,
    });
}
