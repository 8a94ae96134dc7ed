# Fails unless OBJECT defines exactly the global symbol EXPECTED (weak symbols count as global).
execute_process(COMMAND ${NM} -g --defined-only ${OBJECT} OUTPUT_VARIABLE listing COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[A-Za-z] [^\n]+" symbols "${listing}")
if(NOT "${symbols}" MATCHES "^T _?${EXPECTED}$")
  message(FATAL_ERROR "${OBJECT} must define ${EXPECTED} alone, but defines: ${symbols}")
endif()
