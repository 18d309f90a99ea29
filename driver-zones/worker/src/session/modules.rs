use std::ffi::{CStr, CString};

use gpuzone_cuda_abi::{CUfunction, CuResult};
use gpuzone_wire::ring::Bulk;
use gpuzone_wire::spec::{
    ContextId, FunctionId, FunctionSetAttribute, ModuleFunction, ModuleFunctionReply, ModuleGlobal,
    ModuleGlobalReply, ModuleId, ModuleLoad, ModuleLoaded, Occupancy, OccupancyShared, ParamInfo,
};

use super::jit::Compiler;
use super::{Function, Global, Module, Session, room};
use crate::code::{Code, look};
use crate::host_room::Held;

/// Attributes that `cuFuncGetAttribute` knows: 0 to 15.
const FUNCTION_ATTRIBUTES: i32 = 16;
/// Arguments that a kernel may have: they share 32,764 bytes.
const MAX_PARAMETERS: usize = 32_764;

impl Session {
    pub(super) fn collect_image(&mut self, bulk: Bulk) -> Result<(), CuResult> {
        if (self.image.len() + bulk.len()) as u64 > self.lease.caps.module_bytes {
            // The rest of this image will come too; its end is refused with the load.
            return Err(CuResult::OUT_OF_MEMORY);
        }
        self.image_held.grow(bulk.len() as u64)?;
        // SAFETY: the record is released after this call.
        unsafe { bulk.append_to(&mut self.image) };
        Ok(())
    }

    pub(super) fn load_module(
        &mut self,
        context: ContextId,
        request: &ModuleLoad,
    ) -> Result<ModuleLoaded, CuResult> {
        let mut image = std::mem::take(&mut self.image);
        let none = Held::none(&self.lease.images);
        let held = std::mem::replace(&mut self.image_held, none);
        if image.is_empty() || self.modules.contains_key(&request.module) {
            return Err(CuResult::INVALID_VALUE);
        }
        room(self.modules.len(), self.lease.caps.modules)?;
        let Code { prints } = look(&image, self.lease.caps.unpacked_bytes)?;
        if prints {
            self.expect_prints();
        }
        // Takes long, and nobody else is to wait for that.
        self.drain();
        let device = self.enter(context)?.device;
        // PTX is a text that ends with a zero; more zeros behind anything else do no harm.
        image.extend([0; 8]);
        let mut compiler = Compiler::new(&request.settings, request.info_log, request.error_log)?;
        let (count, options, values) = compiler.options();
        let mut made = std::ptr::null_mut();
        let lease = self.lease.clone();
        let load = || {
            // SAFETY: the image ends with zeros; both lists have `count` elements; the logs
            // outlive the call and have the sizes that are given.
            unsafe {
                let image = image.as_ptr().cast();
                (lease.driver.module_load)(&raw mut made, image, count, options, values)
            }
        };
        let (result, charge) = self.charge_what_it_takes(device, load);
        if self.ask(result).is_ok() {
            match charge {
                Ok(charge) => {
                    let module = Module { context, driver: made, charge, _image: held };
                    self.modules.insert(request.module, module);
                }
                Err(over) => {
                    // SAFETY: the module just loaded, known to nobody.
                    let _ = unsafe { (lease.driver.module_unload)(made) };
                    return Err(over);
                }
            }
        }
        let (info_log, error_log) = compiler.logs();
        Ok(ModuleLoaded { loaded: result.0, prints, info_log, error_log })
    }

    pub(super) fn name_kernels(&mut self, id: ModuleId) -> Result<Vec<String>, CuResult> {
        let module = self.modules.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
        let (context, of) = (module.context, module.driver);
        self.enter(context)?;
        let mut count = 0;
        // SAFETY: a place for the answer and a module of the current context.
        self.ask(unsafe { (self.lease.driver.module_kernel_count)(&raw mut count, of) })?;
        if count > self.lease.caps.functions {
            return Err(CuResult::OUT_OF_MEMORY);
        }
        let mut kernels = vec![std::ptr::null_mut(); count as usize];
        // SAFETY: room for as many answers as there are.
        let named = unsafe { (self.lease.driver.module_kernels)(kernels.as_mut_ptr(), count, of) };
        self.ask(named)?;
        kernels.into_iter().map(|kernel| self.name_of(kernel)).collect()
    }

    fn name_of(&self, kernel: CUfunction) -> Result<String, CuResult> {
        let mut name = std::ptr::null();
        // SAFETY: a place for the answer and a kernel of the current context.
        self.ask(unsafe { (self.lease.driver.function_name)(&raw mut name, kernel) })?;
        if name.is_null() {
            return Err(CuResult::NOT_FOUND);
        }
        // SAFETY: a text of the driver's, which stays as long as its module.
        Ok(unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned())
    }

    pub(super) fn unload_module(&mut self, id: ModuleId) -> Result<(), CuResult> {
        let module = self.modules.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
        let (context, driver) = (module.context, module.driver);
        self.enter(context)?;
        self.functions.retain(|_, function| function.module != id);
        self.globals.retain(|_, global| global.module != id);
        let unloaded = {
            let _gate = self.lease.ledger.close_gate();
            // SAFETY: a module of the current context; its kernels are in no table any more.
            unsafe { (self.lease.driver.module_unload)(driver) }
        };
        // What the driver keeps stays charged.
        self.ask(unloaded)?;
        self.modules.remove(&id);
        Ok(())
    }

    pub(super) fn look_up_function(
        &mut self,
        request: ModuleFunction,
    ) -> Result<ModuleFunctionReply, CuResult> {
        let module = self.modules.get(&request.module).ok_or(CuResult::INVALID_HANDLE)?;
        let (context, of) = (module.context, module.driver);
        if self.functions.contains_key(&request.function) {
            return Err(CuResult::INVALID_VALUE);
        }
        room(self.functions.len(), self.lease.caps.functions)?;
        self.enter(context)?;
        let name = CString::new(request.name).map_err(|_| CuResult::NOT_FOUND)?;
        let mut driver = std::ptr::null_mut();
        // SAFETY: a place for the answer, a module of the current context, a name with its end.
        let found =
            unsafe { (self.lease.driver.module_function)(&raw mut driver, of, name.as_ptr()) };
        self.ask(found)?;
        let parameters = self.parameters(driver)?;
        let attributes = self.attributes(driver);
        let (module, layout) = (request.module, parameters.clone());
        let function = Function { context, module, driver, parameters: layout };
        self.functions.insert(request.function, function);
        Ok(ModuleFunctionReply { parameters, attributes })
    }

    fn parameters(&self, function: CUfunction) -> Result<Vec<ParamInfo>, CuResult> {
        let mut parameters = Vec::new();
        for index in 0..MAX_PARAMETERS {
            let (mut offset, mut size) = (0usize, 0usize);
            // SAFETY: places for the answers and a kernel of the current context.
            let asked = unsafe {
                let ask = self.lease.driver.function_parameter;
                ask(function, index, &raw mut offset, &raw mut size)
            };
            if asked == CuResult::INVALID_VALUE {
                break;
            }
            self.ask(asked)?;
            let number = |n: usize| u32::try_from(n).map_err(|_| CuResult::INVALID_IMAGE);
            parameters.push(ParamInfo { offset: number(offset)?, size: number(size)? });
        }
        Ok(parameters)
    }

    fn attributes(&self, function: CUfunction) -> Vec<i32> {
        let attribute = |number| {
            let mut value = 0;
            // SAFETY: a place for the answer and a kernel of the current context; an attribute
            // that the driver does not know leaves 0.
            let _ =
                unsafe { (self.lease.driver.function_attribute)(&raw mut value, number, function) };
            value
        };
        (0..FUNCTION_ATTRIBUTES).map(attribute).collect()
    }

    pub(super) fn look_up_global(
        &mut self,
        request: ModuleGlobal,
    ) -> Result<ModuleGlobalReply, CuResult> {
        let module = self.modules.get(&request.module).ok_or(CuResult::INVALID_HANDLE)?;
        let (context, of) = (module.context, module.driver);
        self.enter(context)?;
        let name = CString::new(request.name).map_err(|_| CuResult::NOT_FOUND)?;
        let (mut pointer, mut bytes) = (0u64, 0usize);
        // SAFETY: places for the answers, a module of the current context, a name with its end.
        let found = unsafe {
            let ask = self.lease.driver.module_global;
            ask(&raw mut pointer, &raw mut bytes, of, name.as_ptr())
        };
        self.ask(found)?;
        let bytes = bytes as u64;
        room(self.globals.len(), self.lease.caps.allocations)?;
        self.globals.insert(pointer, Global { module: request.module, bytes });
        let pointer = gpuzone_wire::spec::DevicePtr(pointer);
        Ok(ModuleGlobalReply { pointer, bytes })
    }

    pub(super) fn enter_function(&mut self, id: FunctionId) -> Result<CUfunction, CuResult> {
        let function = self.functions.get(&id).ok_or(CuResult::INVALID_HANDLE)?;
        let (context, driver) = (function.context, function.driver);
        self.enter(context)?;
        Ok(driver)
    }

    pub(super) fn set_function_attribute(
        &mut self,
        request: &FunctionSetAttribute,
    ) -> Result<Vec<i32>, CuResult> {
        let function = self.enter_function(request.function)?;
        // SAFETY: a kernel of the current context; the driver judges attribute and value.
        let set = unsafe {
            let set = self.lease.driver.function_set_attribute;
            set(function, request.attribute, request.value)
        };
        self.ask(set)?;
        Ok(self.attributes(function))
    }

    pub(super) fn ask_occupancy(&mut self, request: &Occupancy) -> Result<i32, CuResult> {
        let function = self.enter_function(request.function)?;
        let shared = usize::try_from(request.dynamic_shared);
        let shared = shared.map_err(|_| CuResult::INVALID_VALUE)?;
        let mut blocks = 0;
        // SAFETY: a place for the answer and a kernel of the current context.
        let asked = unsafe {
            let ask = self.lease.driver.occupancy;
            ask(&raw mut blocks, function, request.block, shared, request.flags)
        };
        self.ask(asked)?;
        Ok(blocks)
    }

    pub(super) fn ask_shared(&mut self, request: &OccupancyShared) -> Result<u64, CuResult> {
        let function = self.enter_function(request.function)?;
        let mut bytes = 0usize;
        // SAFETY: a place for the answer and a kernel of the current context.
        let asked = unsafe {
            let ask = self.lease.driver.occupancy_shared;
            ask(&raw mut bytes, function, request.blocks, request.block)
        };
        self.ask(asked)?;
        Ok(bytes as u64)
    }
}
