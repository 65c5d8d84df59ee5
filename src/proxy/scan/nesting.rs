//! What is open around the current byte: objects and arrays, one bit each.

/// The open containers.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    /// Those since the last full word, the innermost in the lowest bit: whether it is an object.
    word: u64,
    /// Full words, from the outside in; hardly any body has one.
    full: Vec<u64>,
    depth: usize,
}

impl Nesting {
    /// How many containers are open.
    #[inline]
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Whether the innermost container is an object, if there is one.
    #[inline]
    pub(super) fn in_object(&self) -> bool {
        self.word & 1 == 1
    }

    /// Opens an object, or an array.
    #[inline]
    pub(super) fn push(&mut self, object: bool) {
        if self.depth.is_multiple_of(WORD) && self.depth > 0 {
            self.full.push(self.word);
        }
        self.word = self.word << 1 | u64::from(object);
        self.depth += 1;
    }

    /// Closes the innermost.
    #[inline]
    pub(super) fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.word >>= 1;
        if self.depth.is_multiple_of(WORD) {
            self.word = self.full.pop().unwrap_or_default();
        }
    }
}

/// Bits of a word.
const WORD: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_as_a_stack_of_booleans(steps in prop::collection::vec(any::<Option<bool>>(), 0..600)) {
            let (mut nesting, mut stack) = (Nesting::default(), Vec::new());
            for step in steps {
                match step {
                    Some(object) => { nesting.push(object); stack.push(object); }
                    None => if stack.pop().is_some() { nesting.pop(); },
                }
                prop_assert_eq!(nesting.in_object(), stack.last().copied().unwrap_or(false));
                prop_assert_eq!(nesting.depth(), stack.len());
            }
        }
    }
}
