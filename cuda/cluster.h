// Many steps in one launch by thread-block clusters: whether a problem fits on the device that way, and how it is
// cut up.
//
// A cluster of up to 8 blocks holds the weights in registers, 16, 32 or 48 units of all gates in each block,
// and works on 8, 16 or 32 positions of the batch. Clusters do not wait for each other.
#pragma once

#include <string>

#include "cells.h"
#include "kernel_table.h"
#include "kernels/cluster_arguments.h"

namespace fusedrnn::cuda {

struct ClusterPlan {
    int blocks;  // of a cluster
    int tiles;   // of 16 units, of a block
    int form;    // of kClusterCells
    int groups;  // clusters
};

// Why a request does not fit, as "H: expected at most 384, got 512"; empty where it does.
std::string reason_against_cluster(const Request& request);
// How it is cut up; std::runtime_error with the reason where it does not fit.
ClusterPlan plan_cluster(const Request& request);

}  // namespace fusedrnn::cuda
