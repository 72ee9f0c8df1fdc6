// Sets *flag if one of the values has all bits of its exponent set: an infinity or a NaN. `low` and `high` are those
// bits within a word of 32: of one float, or of the two halves.
extern "C" __global__ void non_finite(const uint4* values, unsigned long long count, unsigned low, unsigned high,
                                      int* flag) {
    bool found = false;
    auto bad = [&](unsigned word) { return (word & low) == low || (word & high) == high; };
    for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
         i += (unsigned long long)gridDim.x * blockDim.x) {
        const uint4 four = values[i];
        found = found || bad(four.x) || bad(four.y) || bad(four.z) || bad(four.w);
    }
    if (found) *flag = 1;
}
