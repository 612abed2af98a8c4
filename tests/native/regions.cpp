// A library that calls OpenMP as llama.cpp's do, for test_openmp.cpp.
#include <omp.h>

extern "C" int sum_of_squares(int num_ranks, int count) {
    int parts[16] = {}, sum = 0, num_singles = 0;
#pragma omp parallel num_threads(num_ranks)
    {
#pragma omp single
        num_singles += 1;
        const int rank = omp_get_thread_num();
        for (int i = rank; i < count; i += omp_get_num_threads()) parts[rank] += i * i;
#pragma omp barrier
        if (rank == 0)
            for (int part : parts) sum += part;
    }
    return num_singles == 1 ? sum : -1;
}

// As ggml makes its tables for quantizing.
extern "C" int sum_by_loop(int num_ranks, int count) {
    int sum = 0;
#pragma omp parallel num_threads(num_ranks) reduction(+ : sum)
    {
#pragma omp for schedule(dynamic, 64)
        for (int i = 0; i < count; i++) sum += i * i;
    }
    return sum;
}

extern "C" int num_of_nested(int num_ranks) {
    int counts[16] = {}, sum = 0;
#pragma omp parallel num_threads(num_ranks)
    {
        int &count = counts[omp_get_thread_num()];
#pragma omp parallel num_threads(2)
        {
#pragma omp single
            count += omp_get_num_threads();
        }
    }
    for (int count : counts) sum += count;
    return sum;
}
