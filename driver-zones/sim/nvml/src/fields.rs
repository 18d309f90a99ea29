//! Values that are asked for by number.

use gpuzone_sim_device::Condition;
use nvml_wrapper_sys::bindings::field_id::{
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_REMAPPED_FAILURE,
};
use nvml_wrapper_sys::bindings::*;

use crate::state::{Device, Handle, known};
use gpuzone_nvml_abi::{INVALID, Out, entry_points};

fn value(condition: Condition, field: u32) -> Option<u32> {
    match field {
        NVML_FI_DEV_REMAPPED_FAILURE => Some(u32::from(condition.remap_failed)),
        NVML_FI_DEV_GET_GPU_RECOVERY_ACTION => Some(condition.action),
        _ => None,
    }
}

entry_points! {
    fn nvmlDeviceGetFieldValues(device: Handle, count: i32, values: Out<nvmlFieldValue_t>) {
        let condition = known(Device::of(device)?.gpu().condition())?;
        for index in 0..usize::try_from(count).map_err(|_| INVALID)? {
            let mut field = values.get_at(index)?;
            match value(condition, field.fieldId) {
                Some(value) => {
                    field.nvmlReturn = nvmlReturn_enum_NVML_SUCCESS;
                    field.valueType = nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT;
                    field.value = nvmlValue_t { uiVal: value };
                }
                None => field.nvmlReturn = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
            }
            values.put_at(index, field)?;
        }
        Ok(())
    }
}
