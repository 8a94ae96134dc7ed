// THE compiled text of message passing for one pack of samples. (Sampling: cpu_sample.hpp, cuda_sample.hpp.)
//
// A lane is a sample. Rules are walked in order, the same for all lanes, so the work is proportional
// to the number of rules and there is no divergence. hfilter/reference.py is the same text in Python;
// both round in the same order, and tests compare them with ==.
//
// Words: level 0 is the root, `k` the filter level, `nu` the upward message, `mu` the downward one.
// Every message is normalised to a maximum in [1, 2) by an exact power of two, so scaling costs no
// accuracy. Of soft evidence, processors leave some as they are, where nothing can happen to them, and
// lift the others (Scaling), which then lose less than `tiny` and `slack` reckon with. What scaling
// cannot repair (entries of one message more than the exponent range apart, later needed because the
// evidence contradicts itself) is noticed and reported as HF_ROW_RANGE.
#pragma once

#include "tree_messages.hpp"
#include "tree_sampling.hpp"
#include "tree_star.hpp"
