//! How the fields of a call are written: little-endian numbers one after the other, a list as
//! its length and its elements. What is read is bounds-checked; what is left over is an error.

/// Bytes that are no such call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end within a field.
    #[error("a record ends within a field")]
    Short,
    /// There are bytes behind the last field.
    #[error("a record has bytes behind its last field")]
    Long,
    /// A number that stands for nothing.
    #[error("a record has a value that stands for nothing")]
    Value,
    /// No call has this number.
    #[error("there is no call {0}")]
    Opcode(u16),
}

/// What is left to read of a record.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    /// All of `bytes`.
    #[inline]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// When there are fewer.
    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When bytes are left.
    #[inline]
    pub const fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Long) }
    }
}

/// Something that stands in a record.
pub trait Field: Sized {
    /// Appends it.
    fn put(&self, target: &mut Vec<u8>);

    /// Reads it.
    ///
    /// # Errors
    /// When the bytes are too few or stand for nothing.
    fn get(source: &mut Source<'_>) -> Result<Self, DecodeError>;

    /// Appends some of them, one after the other.
    fn put_all(items: &[Self], target: &mut Vec<u8>) {
        items.iter().for_each(|item| item.put(target));
    }

    /// Reads so many of them.
    ///
    /// # Errors
    /// As [`Field::get`].
    fn get_all(count: u32, source: &mut Source<'_>) -> Result<Vec<Self>, DecodeError> {
        // No room is set aside on the word of the other side: each element needs its bytes.
        let mut list = Vec::new();
        for _ in 0..count {
            if source.rest.is_empty() {
                return Err(DecodeError::Short);
            }
            list.push(Self::get(source)?);
        }
        Ok(list)
    }
}

impl Field for u8 {
    #[inline]
    fn put(&self, target: &mut Vec<u8>) {
        target.push(*self);
    }

    #[inline]
    fn get(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        source.take(1)?.first().copied().ok_or(DecodeError::Short)
    }

    fn put_all(items: &[Self], target: &mut Vec<u8>) {
        target.extend_from_slice(items);
    }

    fn get_all(count: u32, source: &mut Source<'_>) -> Result<Vec<Self>, DecodeError> {
        let count = usize::try_from(count).map_err(|_| DecodeError::Short)?;
        source.take(count).map(<[u8]>::to_vec)
    }
}

macro_rules! number_fields {
    ($($type:ty),*) => {$(
        impl Field for $type {
            #[inline]
            fn put(&self, target: &mut Vec<u8>) {
                target.extend_from_slice(&self.to_le_bytes());
            }

            #[inline]
            fn get(source: &mut Source<'_>) -> Result<Self, DecodeError> {
                let bytes = source.take(size_of::<Self>())?;
                bytes.try_into().map(Self::from_le_bytes).map_err(|_| DecodeError::Short)
            }
        }
    )*};
}
number_fields!(u32, u64, i32, f32);

impl Field for () {
    fn put(&self, _target: &mut Vec<u8>) {}

    #[inline]
    fn get(_source: &mut Source<'_>) -> Result<Self, DecodeError> {
        Ok(())
    }
}

impl Field for bool {
    #[inline]
    fn put(&self, target: &mut Vec<u8>) {
        u8::from(*self).put(target);
    }

    #[inline]
    fn get(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        match u8::get(source)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Value),
        }
    }
}

impl Field for [u32; 3] {
    #[inline]
    fn put(&self, target: &mut Vec<u8>) {
        self.iter().for_each(|number| number.put(target));
    }

    #[inline]
    fn get(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        Ok([u32::get(source)?, u32::get(source)?, u32::get(source)?])
    }
}

impl<T: Field> Field for Vec<T> {
    #[inline]
    fn put(&self, target: &mut Vec<u8>) {
        // No record can hold a list whose length does not fit: it is refused when it is sent.
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(target);
        T::put_all(self, target);
    }

    #[inline]
    fn get(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        let count = u32::get(source)?;
        T::get_all(count, source)
    }
}

impl Field for String {
    #[inline]
    fn put(&self, target: &mut Vec<u8>) {
        u32::try_from(self.len()).unwrap_or(u32::MAX).put(target);
        target.extend_from_slice(self.as_bytes());
    }

    #[inline]
    fn get(source: &mut Source<'_>) -> Result<Self, DecodeError> {
        let count = usize::try_from(u32::get(source)?).map_err(|_| DecodeError::Short)?;
        let bytes = source.take(count)?.to_vec();
        Self::from_utf8(bytes).map_err(|_| DecodeError::Value)
    }
}

/// Makes newtypes of numbers and structs of fields stand in records.
macro_rules! fields {
    ($type:ident($inner:ty)) => {
        impl $crate::codec::Field for $type {
            #[inline]
            fn put(&self, target: &mut Vec<u8>) {
                $crate::codec::Field::put(&self.0, target);
            }

            #[inline]
            fn get(
                source: &mut $crate::codec::Source<'_>,
            ) -> Result<Self, $crate::codec::DecodeError> {
                <$inner as $crate::codec::Field>::get(source).map(Self)
            }
        }
    };
    ($type:ident { $($field:ident),* }) => {
        impl $crate::codec::Field for $type {
            #[inline]
            fn put(&self, target: &mut Vec<u8>) {
                $($crate::codec::Field::put(&self.$field, target);)*
                let _ = target;
            }

            #[inline]
            fn get(
                source: &mut $crate::codec::Source<'_>,
            ) -> Result<Self, $crate::codec::DecodeError> {
                $(let $field = $crate::codec::Field::get(source)?;)*
                let _ = source;
                Ok(Self { $($field),* })
            }
        }
    };
}
pub(crate) use fields;
